//! The static cost of single calls: those of Kubernetes' libraries and extensions, and the standard ones.

use super::Size;
use crate::types::Type;

/// What is known of an argument.
pub(super) struct Arg {
    pub t: Type,
    /// Its size, also from the embedder; unknown when nothing is known.
    pub size: Size,
    /// Its size as it follows from the expression.
    pub derived: Option<Size>,
    /// The type and size of what it holds.
    pub element: Option<(Type, Size)>,
    /// Its value, where it is a whole number that is written down.
    pub literal: Option<i64>,
}

impl Arg {
    fn count(&self, unknown: u64) -> u64 {
        self.literal.map_or(unknown, |n| n.max(0) as u64)
    }
}

/// Units of cost a unit of text.
const WALK: f64 = 0.1;
/// Units of cost a character of a pattern.
const PATTERN: f64 = 0.25;
const ONE: Size = Size { min: 1, max: 1 };

/// The cost of a call that an extension or Kubernetes estimates, with the size of its result; none where neither does.
pub(super) fn extended(function: &str, overload: &str, target: Option<&Arg>, args: &[Arg]) -> Option<(Size, Option<Size>)> {
    if let Some(found) = lists(overload, target, args) {
        return Some(found);
    }
    let plain = |cost: Size| Some((cost, None));
    let first = args.first();
    match function {
        "check" => plain(Size::fixed(350_000)),
        "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name" | "allowed" | "reason" | "error"
        | "errored" => plain(ONE),
        "fieldSelector" | "labelSelector" => {
            let length = first?.size;
            plain(Size::fixed(10).add(length.scale(WALK)).add(length.scale(0.5).scale(50.0)))
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            let target = target?;
            match &target.element {
                Some((t, size)) => {
                    let each = if matches!(t, Type::String | Type::Bytes) { ONE.add(size.scale(WALK)) } else { ONE };
                    plain(target.size.times(each))
                }
                None => plain(target.size.scale(WALK)),
            }
        }
        "url" | "jsonpatch.escapeKey" => first.map(|a| (a.size.scale(WALK), Some(a.size))),
        "lowerAscii" | "upperAscii" | "substring" | "trim" => target.map(|t| (t.size.scale(WALK), Some(t.size))),
        "replace" => Some(replace(target?.size, first?.size, args.get(1)?.size)),
        "split" => {
            let size = target?.size;
            let max = args.get(1).and_then(|a| a.literal).map_or(size.max, |n| n as u64);
            Some((size.scale(2.0 * WALK), Some(Size { min: 0, max })))
        }
        "join" => {
            let target = target?;
            let mut size = target.element.as_ref().map_or(Size::fixed(0), |(_, e)| target.size.times(*e));
            if let Some(separator) = first {
                let between = Size { min: target.size.min.saturating_sub(1), max: target.size.max.saturating_sub(1) };
                size = size.add(separator.size.times(between));
            }
            Some((size.scale(WALK), Some(size)))
        }
        "find" | "findAll" => {
            let (size, pattern) = (target?.size, first?.size);
            Some((size.add(ONE).scale(WALK).times(pattern.scale(PATTERN)), Some(Size { min: 0, max: size.max })))
        }
        "ip" if overload == "cidr_ip" => plain(ONE),
        "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => plain(first?.size.scale(WALK)),
        "ip.isCanonical" => plain(first?.size.scale(2.0 * WALK)),
        "containsIP" | "containsCIDR" => {
            let size = Size { min: 4, max: 16 };
            let mut cost = size.add(size).scale(WALK);
            if function == "containsCIDR" {
                cost = cost.add(size.scale(WALK)).add(ONE);
            }
            if matches!(overload, "cidr_contains_ip_string" | "cidr_contains_cidr_string") {
                cost = cost.add(first?.size.scale(WALK));
            }
            plain(cost)
        }
        "validate" => plain(first?.size.scale(WALK).scale(128.0 * PATTERN)),
        "masked" | "prefixLength" | "family" | "isUnspecified" | "isLoopback" | "isLinkLocalMulticast" | "isLinkLocalUnicast"
        | "isGlobalUnicast" | "format.named" | "sign" | "asInteger" | "isInteger" | "asApproximateFloat" | "isGreaterThan" | "isLessThan"
        | "compareTo" | "add" | "sub" | "major" | "minor" | "patch" | "getScheme" | "getHostname" | "getHost" | "getPort"
        | "getEscapedPath" | "getQuery" => plain(ONE),
        "_==_" if args.len() == 2 && args[0].t == args[1].t => match &args[0].t {
            Type::Opaque(name, _) if matches!(&**name, "net.IP" | "net.CIDR") => plain(ONE),
            Type::Object(name) => match &**name {
                "kubernetes.Quantity" | "kubernetes.Semver" => plain(ONE),
                _ if name.starts_with("kubernetes.authorization.") => plain(ONE),
                "kubernetes.NamedFormat" => plain(Size { min: 1, max: 64 }.scale(WALK)),
                "kubernetes.URL" => {
                    let max = args[1].derived.map_or(1, |s| s.max);
                    plain(Size { min: 1, max }.scale(WALK))
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// The extensions of lists and sets: what makes a list costs its length and what making one costs.
fn lists(overload: &str, target: Option<&Arg>, args: &[Arg]) -> Option<(Size, Option<Size>)> {
    let made = |factor: f64, size: Size| Some((size.scale(factor).add(ONE).add(Size::fixed(10)), Some(size)));
    let squared = |arg: &Arg| {
        let text = overload.starts_with("list_string_") || overload.starts_with("list_bytes_");
        made(if text { 2.1 } else { 2.0 }, arg.size.times(arg.size))
    };
    match overload {
        "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list" => {
            let factor = if overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
            Some((args.first()?.size.times(args.get(1)?.size).scale(factor).add(ONE), None))
        }
        "list_slice" => {
            let (start, end) = (args.first()?.count(0), args.get(1)?.count(target?.size.max));
            made(1.0, Size::fixed(end.wrapping_sub(start)))
        }
        "lists_range" => made(1.0, Size::fixed(args.first()?.count(u64::MAX))),
        "list_reverse" => made(1.0, target?.size),
        "list_flatten" | "list_flatten_int" => {
            let depth = args.first().map_or(1, |a| a.count(u64::MAX));
            made(depth as f64, target?.size)
        }
        "list_distinct" => made(2.0, target?.size.times(target?.size)),
        _ if overload.starts_with("list_") && overload.ends_with("_sort") => squared(target?),
        _ if overload.ends_with("_sortByAssociatedKeys") => squared(args.first()?),
        _ => None,
    }
}

/// The cost of a replacement, and how long the text can become.
fn replace(text: Size, old: Size, new: Size) -> (Size, Option<Size>) {
    let (mut count, mut kept) = (Size::fixed(0), Size::fixed(0));
    let most = |n: u64| if n < u64::MAX { n + 1 } else { n };
    if old.min == 0 {
        count.max = most(text.max);
        kept.max = text.max;
    } else if new.max <= old.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / old.min as f64).ceil() as u64;
    }
    if old.max == 0 {
        count.min = most(text.min);
        kept.min = text.min;
    } else if old.max <= new.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / old.max as f64).ceil() as u64;
    }
    (text.scale(2.0 * WALK), Some(count.times(new).add(kept)))
}

/// The cost of a standard call without its arguments' costs, and the size of what it gives.
pub(super) fn standard(overload: &str, target: Option<&Arg>, args: &[Arg]) -> (Size, Option<Size>) {
    let derived = |arg: Option<&Arg>| arg.and_then(|a| a.derived).unwrap_or(Size::UNKNOWN);
    let (first, second) = (derived(args.first()), derived(args.get(1)));
    let of = derived(target);
    match overload {
        "string_format" => (of.scale(WALK), None),
        "string_to_bytes" => (first.scale(WALK), Some(Size { min: first.min, max: first.max.wrapping_mul(4) })),
        "bytes_to_string" => (first.scale(WALK), Some(Size { min: first.min / 4, max: first.max })),
        "strings_quote" => {
            let size = Size { min: first.min.saturating_add(2), max: first.max.wrapping_mul(2).wrapping_add(2) };
            (first.scale(WALK), Some(size))
        }
        "starts_with_string" | "ends_with_string" => (first.scale(WALK), None),
        "in_list" => (second.scale(1.0), None),
        "matches_string" if target.is_some() => (of.add(ONE).scale(WALK).times(first.scale(PATTERN)), None),
        "contains_string" if target.is_some() => (of.scale(WALK).times(first.scale(WALK)), None),
        "less_string" | "greater_string" | "less_equals_string" | "greater_equals_string" | "less_bytes" | "greater_bytes"
        | "less_equals_bytes" | "greater_equals_bytes" | "equals" | "not_equals" => {
            let max = first.max.min(second.max);
            (Size { min: u64::from(max > 0), max }.scale(WALK), None)
        }
        _ => (ONE, None),
    }
}
