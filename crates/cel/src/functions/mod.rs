//! The functions that expressions can call, by name. Each takes its arguments as they are at run time and decides by their
//! types which of its overloads is meant.

mod arithmetic;
mod authz;
pub(crate) mod convert;
pub(crate) mod format;
pub(crate) mod lists;
pub(crate) mod named_format;
mod net;
mod optional;
pub(crate) mod pattern;
mod quantity;
pub(crate) mod semver;
mod strings;
pub(crate) mod time;
pub(crate) mod url;

use crate::error::Error;
use crate::eval::Activation;
use crate::value::Value;

/// What a function gives.
pub(crate) type Res<'a> = Result<Value<'a>, Error>;
/// A function.
pub(crate) type Builtin = for<'x, 'a> fn(&'x Activation<'a>, &'x [Value<'a>]) -> Res<'a>;

/// Longest text that a function makes, in bytes.
pub(crate) const LONGEST: usize = 64 << 20;

/// A function by its name, with the name as it can be kept.
pub(crate) fn lookup(name: &str) -> Option<(&'static str, Builtin)> {
    FUNCTIONS.iter().chain(named_format::FUNCTIONS).find(|(n, _)| *n == name).copied()
}

/// Whether a function converts between types: such calls of constants are constants.
pub(crate) fn is_conversion(name: &str) -> bool {
    matches!(name, "bool" | "bytes" | "double" | "dyn" | "duration" | "int" | "string" | "timestamp" | "type" | "uint")
}

const FUNCTIONS: &[(&str, Builtin)] = &[
    ("!_", |_, a| match a {
        [Value::Bool(v)] => Ok(Value::Bool(!v)),
        _ => Err(Error::no_overload()),
    }),
    ("-_", |_, a| arithmetic::negate(a)),
    ("_+_", |_, a| arithmetic::add(a)),
    ("_-_", |_, a| arithmetic::subtract(a)),
    ("_*_", |_, a| arithmetic::multiply(a)),
    ("_/_", |_, a| arithmetic::divide(a)),
    ("_%_", |_, a| arithmetic::modulo(a)),
    ("_<_", |_, a| arithmetic::relation(a, |o| o.is_lt())),
    ("_<=_", |_, a| arithmetic::relation(a, |o| o.is_le())),
    ("_>_", |_, a| arithmetic::relation(a, |o| o.is_gt())),
    ("_>=_", |_, a| arithmetic::relation(a, |o| o.is_ge())),
    ("@in", |_, a| lists::contains(a)),
    ("size", |_, a| strings::size(a)),
    ("type", |_, a| convert::type_of(a)),
    ("dyn", |_, a| a.first().cloned().ok_or_else(Error::no_overload)),
    ("bool", |_, a| convert::bool(a)),
    ("bytes", |_, a| convert::bytes(a)),
    ("double", |_, a| convert::double(a)),
    ("duration", |_, a| convert::duration(a)),
    ("int", |_, a| convert::int(a)),
    ("string", |_, a| convert::string(a)),
    ("timestamp", |_, a| convert::timestamp(a)),
    ("uint", |_, a| convert::uint(a)),
    ("contains", |_, a| strings::test(a, |s, t| s.contains(t))),
    ("startsWith", |_, a| strings::test(a, |s, t| s.starts_with(t))),
    ("endsWith", |_, a| strings::test(a, |s, t| s.ends_with(t))),
    ("matches", |x, a| pattern::dynamic(x, pattern::Function::Matches, a)),
    ("find", |x, a| pattern::dynamic(x, pattern::Function::Find, a)),
    ("findAll", |x, a| pattern::dynamic(x, pattern::Function::FindAll, a)),
    ("getFullYear", |_, a| time::get(a, time::Part::FullYear)),
    ("getMonth", |_, a| time::get(a, time::Part::Month)),
    ("getDayOfYear", |_, a| time::get(a, time::Part::DayOfYear)),
    ("getDayOfMonth", |_, a| time::get(a, time::Part::DayOfMonth)),
    ("getDate", |_, a| time::get(a, time::Part::Date)),
    ("getDayOfWeek", |_, a| time::get(a, time::Part::DayOfWeek)),
    ("getHours", |_, a| time::get(a, time::Part::Hours)),
    ("getMinutes", |_, a| time::get(a, time::Part::Minutes)),
    ("getSeconds", |_, a| time::get(a, time::Part::Seconds)),
    ("getMilliseconds", |_, a| time::get(a, time::Part::Milliseconds)),
    ("optional.of", |_, a| optional::of(a)),
    ("optional.ofNonZeroValue", |_, a| optional::of_non_zero(a)),
    ("optional.none", |_, _| Ok(Value::Optional(None))),
    ("optional.unwrap", |_, a| optional::unwrap(a)),
    ("unwrapOpt", |_, a| optional::unwrap(a)),
    ("value", |_, a| optional::value(a)),
    ("hasValue", |_, a| optional::has_value(a)),
    ("first", |_, a| optional::end(a, true)),
    ("last", |_, a| optional::end(a, false)),
    ("charAt", |_, a| strings::char_at(a)),
    ("indexOf", |_, a| strings::index_of(a)),
    ("lastIndexOf", |_, a| strings::last_index_of(a)),
    ("lowerAscii", |_, a| strings::map(a, |s| s.to_ascii_lowercase())),
    ("upperAscii", |_, a| strings::map(a, |s| s.to_ascii_uppercase())),
    ("trim", |_, a| strings::map(a, |s| s.trim().to_string())),
    ("replace", |_, a| strings::replace(a)),
    ("split", |_, a| strings::split(a)),
    ("substring", |_, a| strings::substring(a)),
    ("format", |_, a| format::format(a)),
    ("strings.quote", |_, a| strings::map(a, strings::quote)),
    ("join", |_, a| strings::join(a)),
    ("isSorted", |_, a| lists::is_sorted(a)),
    ("sum", |_, a| lists::sum(a)),
    ("max", |_, a| lists::extreme(a, "max")),
    ("min", |_, a| lists::extreme(a, "min")),
    ("slice", |_, a| lists::slice(a)),
    ("flatten", |_, a| lists::flatten(a)),
    ("sort", |_, a| lists::sort(a)),
    ("@sortByAssociatedKeys", |_, a| lists::sort(a)),
    ("lists.range", |_, a| lists::range(a)),
    ("reverse", |_, a| lists::reverse(a)),
    ("distinct", |_, a| lists::distinct(a)),
    ("sets.contains", |_, a| lists::sets(a, lists::Sets::Contains)),
    ("sets.equivalent", |_, a| lists::sets(a, lists::Sets::Equivalent)),
    ("sets.intersects", |_, a| lists::sets(a, lists::Sets::Intersects)),
    ("cel.@mapInsert", |_, a| match a {
        [map, rest @ ..] => lists::map_insert(map.clone(), rest),
        _ => Err(Error::no_overload()),
    }),
    ("url", |_, a| url::parse(a)),
    ("isURL", |_, a| url::is_url(a)),
    ("getScheme", |_, a| url::part(a, |u| u.scheme.clone())),
    ("getHost", |_, a| url::part(a, |u| u.host.clone())),
    ("getHostname", |_, a| url::part(a, |u| u.hostname().to_string())),
    ("getPort", |_, a| url::part(a, |u| u.port().to_string())),
    ("getEscapedPath", |_, a| url::part(a, |u| u.escaped_path())),
    ("getQuery", |_, a| url::query(a)),
    ("quantity", |_, a| quantity::parse(a)),
    ("isQuantity", |_, a| quantity::is_quantity(a)),
    ("sign", |_, a| quantity::sign(a)),
    ("isGreaterThan", |_, a| quantity::compare(a).map(|o| Value::Bool(o.is_gt()))),
    ("isLessThan", |_, a| quantity::compare(a).map(|o| Value::Bool(o.is_lt()))),
    ("compareTo", |_, a| quantity::compare(a).map(|o| Value::Int(o as i64))),
    ("asApproximateFloat", |_, a| quantity::as_float(a)),
    ("asInteger", |_, a| quantity::as_integer(a)),
    ("isInteger", |_, a| quantity::is_integer(a)),
    ("add", |_, a| quantity::sum(a, false)),
    ("sub", |_, a| quantity::sum(a, true)),
    ("semver", |_, a| semver::semver(a)),
    ("isSemver", |_, a| semver::is_semver(a)),
    ("major", |_, a| semver::part(a, |v| v.major)),
    ("minor", |_, a| semver::part(a, |v| v.minor)),
    ("patch", |_, a| semver::part(a, |v| v.patch)),
    ("ip", |_, a| net::ip(a)),
    ("isIP", |_, a| net::is_ip(a)),
    ("ip.isCanonical", |_, a| net::is_canonical(a)),
    ("family", |_, a| net::family(a)),
    ("isUnspecified", |_, a| net::test(a, |ip| ip.is_unspecified())),
    ("isLoopback", |_, a| net::test(a, |ip| ip.is_loopback())),
    ("isLinkLocalMulticast", |_, a| net::test(a, net::is_link_local_multicast)),
    ("isLinkLocalUnicast", |_, a| net::test(a, net::is_link_local_unicast)),
    ("isGlobalUnicast", |_, a| net::test(a, net::is_global_unicast)),
    ("cidr", |_, a| net::cidr(a)),
    ("isCIDR", |_, a| net::is_cidr(a)),
    ("containsIP", |_, a| net::contains_ip(a)),
    ("containsCIDR", |_, a| net::contains_cidr(a)),
    ("prefixLength", |_, a| net::prefix_length(a)),
    ("masked", |_, a| net::masked(a)),
    ("validate", |_, a| named_format::validate(a)),
    ("format.named", |_, a| named_format::named(a)),
    ("path", |_, a| authz::ask(a, "path")),
    ("group", |_, a| authz::ask(a, "group")),
    ("serviceAccount", |_, a| authz::ask(a, "serviceAccount")),
    ("resource", |_, a| authz::ask(a, "resource")),
    ("subresource", |_, a| authz::ask(a, "subresource")),
    ("namespace", |_, a| authz::ask(a, "namespace")),
    ("name", |_, a| authz::ask(a, "name")),
    ("fieldSelector", |_, a| authz::ask(a, "fieldSelector")),
    ("labelSelector", |_, a| authz::ask(a, "labelSelector")),
    ("check", |_, a| authz::check(a)),
    ("allowed", |_, a| authz::decision(a, |d| Value::Bool(d.allowed))),
    ("errored", |_, a| authz::decision(a, |d| Value::Bool(d.error.is_some()))),
    ("error", |_, a| authz::decision(a, |d| Value::string(d.error.clone().unwrap_or_default()))),
    ("reason", |_, a| authz::decision(a, |d| Value::string(d.reason.as_str()))),
    ("jsonpatch.escapeKey", |_, a| strings::map(a, |s| s.replace('~', "~0").replace('/', "~1"))),
];
