//! Small languages: selectors, quantities, names, times, schedules, paths.

use api::crd::path::{self, JsonPath};
use api::quantity::Quantity;
use api::selector::{Fields, Labels};
use api::{cron, gotime, names};
use jiff::tz::TimeZone;

use super::{Parts, now};

/// A label selector as text; labels, and a selector as an object.
pub fn label_selector(input: &[u8]) {
    let mut parts = Parts::of(input);
    let text = parts.text();
    let labels = parts.tree().unwrap_or_default();
    if let Some(Ok(selector)) = text.map(Labels::parse) {
        let written = selector.to_string();
        let again = Labels::parse(&written).unwrap_or_else(|e| panic!("{e}: {written}"));
        assert_eq!(again.to_string(), written);
        assert_eq!(again.matches(&labels), selector.matches(&labels), "{written} and {labels}");
    }
    if let Some(object) = parts.tree()
        && let Ok(selector) = Labels::from_label_selector(&object)
        && !object.is_null()
    {
        let written = selector.to_string();
        let again = Labels::parse(&written).unwrap_or_else(|e| panic!("{e}: {written}"));
        assert_eq!(again.matches(&labels), selector.matches(&labels), "{written} and {labels}");
        let _ = api::validate::label_selector(&object, &api::field::Path::new("a"));
    }
    let _ = Labels::from_map(&labels).matches(&labels);
}

/// A field selector.
pub fn field_selector(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(selector) = Fields::parse(text) else { return };
    let written = selector.to_string();
    let again = Fields::parse(&written).unwrap_or_else(|e| panic!("{e}: {written}"));
    // The order is that of the text, escapes and all.
    let sorted = |selector: &Fields| {
        let mut terms: Vec<_> = selector.terms().iter().map(|t| (t.path.clone(), t.negated, t.value.clone())).collect();
        terms.sort();
        terms
    };
    assert_eq!(sorted(&again), sorted(&selector), "{text:?} became {written:?}");
    let _ = selector.matches(|path| Some(path.to_owned()));
    let _ = selector.convert(|label| api::field_labels::convert("", "v1", "Pod", label));
}

/// Two quantities.
pub fn quantity(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(Ok(a)) = parts.text().map(Quantity::parse) else { return };
    let canonical = a.canonical();
    let again = Quantity::parse(&canonical).unwrap_or_else(|e| panic!("{e}: {canonical}"));
    assert_eq!(again.canonical(), canonical);
    // for more there is no suffix, and upstream writes it without
    if a.as_f64().abs() < 1e21 {
        assert_eq!(again, a, "{canonical}");
    }
    let _ = (a.value(), a.milli_value(), a.scaled_value(3), a.as_i64(), a.as_f64(), a.is_whole_milli());
    let Some(Ok(b)) = parts.text().map(Quantity::parse) else { return };
    assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
    let mut sum = a.clone();
    sum.add(&b);
    Quantity::parse(&sum.canonical()).unwrap_or_else(|e| panic!("{e}: {a} + {b} = {sum}"));
    let mut difference = a.clone();
    difference.sub(&b);
    Quantity::parse(&difference.canonical()).unwrap_or_else(|e| panic!("{e}: {a} - {b} = {difference}"));
    let mut product = a.clone();
    product.mul(b.value());
    product.neg();
    let _ = product.canonical();
    assert_eq!(difference.is_zero(), a == b, "{a} - {b} = {difference}");
}

/// A name of any kind, and what is made of names.
pub fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let all = [
        names::dns1123_label(text),
        names::dns1123_subdomain(text),
        names::wildcard_dns1123_subdomain(text),
        names::dns1035_label(text),
        names::qualified_name(text),
        names::label_value(text),
        names::port_name(text),
        names::percent(text),
        names::http_header_name(text),
        names::c_identifier(text),
        names::env_var_name(text),
        names::config_map_key(text),
        names::path_segment(text),
    ];
    // What the strictest takes, the others take.
    if all[3].is_empty() {
        assert!(all[0].is_empty() && all[1].is_empty() && all[4].is_empty() && all[5].is_empty(), "{text:?}: {all:?}");
    }
    let _ = names::is_extended_resource(text);
    let _ = api::field::go_quote(text);
    let (group, version) = api::resources::split_api_version(text);
    let _ = api::resources::type_name(group, version, "Pod");
    assert_eq!(api::crd::compare_versions(text, "v1"), api::crd::compare_versions("v1", text).reverse());
    let _ = api::apply::manager_of_user_agent(text);
    let _ = (cel::escape(text).and_then(|e| cel::unescape(&e)).inspect(|back| assert_eq!(back, text)), cel::unescape(text));
}

/// A time, a duration, a schedule, with a zone.
pub fn times(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(text) = parts.text() else { return };
    if let Some((seconds, nanos)) = gotime::parse(text) {
        let written = gotime::format(seconds);
        assert_eq!(gotime::parse(&written).map(|t| t.0), Some(seconds), "{text:?} became {written}");
        let micro = gotime::format_micro(seconds, nanos);
        assert_eq!(gotime::parse(&micro), Some((seconds, nanos / 1000 * 1000)), "{text:?} became {micro}");
        let _ = api::table::duration::Clock::At(now()).since(Some(text));
    } else {
        let _ = gotime::parse_error(text);
    }
    if let Some(nanos) = gotime::parse_duration(text) {
        let written = gotime::format_duration(nanos);
        assert_eq!(gotime::parse_duration(&written), Some(nanos), "{text:?} became {written}");
    }
    if let Ok(schedule) = cron::parse(text) {
        let zone = parts.text().and_then(|name| cron::zone(name).ok()).unwrap_or(TimeZone::UTC);
        let mut at = now();
        for _ in 0..3 {
            let Some(next) = schedule.next(at, &zone) else { break };
            assert!(next > at, "{text:?}: {next} after {at}");
            at = next;
        }
    }
}

/// A path into an object.
pub fn json_path(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(text) = parts.text() else { return };
    let object = parts.tree().unwrap_or_default();
    let _ = path::get(&object, text);
    if let Some(path) = JsonPath::parse(text) {
        let _ = path.find(&object);
    }
    let version = serde_json::json!({"additionalPrinterColumns": [{"name": "a", "type": "date", "jsonPath": text}, {"name": "b", "type": "integer", "jsonPath": text}]});
    let columns = api::crd::columns::columns(&version);
    let _ = api::crd::columns::row(&columns, &object, now());
}
