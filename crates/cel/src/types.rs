//! Types of expressions, how they are printed, and when one fits another.

use std::fmt;
use std::sync::Arc;

/// A type, as the checker knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// Known only when the expression runs.
    Dyn,
    /// The type of what does not check.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Arc<Type>),
    Map(Arc<Type>, Arc<Type>),
    /// An object with the fields that the environment declares for this name, or without any.
    Object(Arc<str>),
    /// A type that only functions look into, like an address.
    Opaque(Arc<str>, Arc<[Type]>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A variable that stands for a type: below 26 of a declaration, above of one check.
    #[doc(hidden)]
    Param(u32),
}

impl Type {
    /// A list of one type.
    pub fn list(of: Type) -> Type {
        Type::List(Arc::new(of))
    }

    /// A map.
    pub fn map(key: Type, value: Type) -> Type {
        Type::Map(Arc::new(key), Arc::new(value))
    }

    /// An object type by its name.
    pub fn object(name: &str) -> Type {
        Type::Object(name.into())
    }

    /// A value that may be absent.
    pub fn optional(of: Type) -> Type {
        Type::Opaque("optional_type".into(), [of].into())
    }

    /// What an optional holds, if this is one.
    pub(crate) fn unwrap_optional(&self) -> Option<&Type> {
        match self {
            Type::Opaque(name, of) if &**name == "optional_type" => of.first(),
            _ => None,
        }
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Type::Dyn | Type::Error)
    }

    /// Whether values of it have the size 1, whatever they are.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
            _ => self.unwrap_optional().is_some_and(Type::is_scalar),
        }
    }

    /// The name that the type has at run time.
    pub(crate) fn runtime_name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Error => "*error*",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::Duration => "google.protobuf.Duration",
            Type::List(_) => "list",
            Type::Map(..) => "map",
            Type::Object(name) | Type::Opaque(name, _) => name,
            Type::Type(_) => "type",
            Type::Param(_) => "type_param",
        }
    }

    fn params(&self) -> Vec<&Type> {
        match self {
            Type::List(of) => vec![of],
            Type::Map(k, v) => vec![k, v],
            Type::Opaque(_, of) => of.iter().collect(),
            Type::Type(Some(of)) => vec![of],
            _ => Vec::new(),
        }
    }

    /// The same type with `f` applied to its parameters.
    fn rebuild(&self, f: &mut dyn FnMut(&Type) -> Type) -> Type {
        match self {
            Type::List(of) => Type::list(f(of)),
            Type::Map(k, v) => Type::map(f(k), f(v)),
            Type::Opaque(name, of) => Type::Opaque(name.clone(), of.iter().map(f).collect()),
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(f(of)))),
            _ => self.clone(),
        }
    }

    /// The type with the parameters of a declaration shifted to fresh ones.
    pub(crate) fn instantiate(&self, base: u32) -> Type {
        match self {
            Type::Param(n) if *n < 26 => Type::Param(base + n),
            _ => self.rebuild(&mut |t| t.instantiate(base)),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Error => f.write_str("!error!"),
            Type::Null => f.write_str("null"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Duration => f.write_str("duration"),
            Type::Param(n) => write!(f, "_var{n}"),
            _ => {
                f.write_str(self.runtime_name())?;
                let params = self.params();
                if params.is_empty() {
                    return Ok(());
                }
                for (i, p) in params.iter().enumerate() {
                    write!(f, "{}{p}", if i == 0 { "(" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

/// What type variables have been found to stand for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings(Vec<(u32, Type)>);

impl Bindings {
    fn find(&self, t: &Type) -> Option<&Type> {
        let Type::Param(n) = t else { return None };
        self.0.iter().find(|(m, _)| m == n).map(|(_, t)| t)
    }

    fn add(&mut self, t: &Type, to: Type) {
        let Type::Param(n) = t else { return };
        match self.0.iter_mut().find(|(m, _)| m == n) {
            Some(slot) => slot.1 = to,
            None => self.0.push((*n, to)),
        }
    }

    /// Whether a value of type `b` may be given where `a` is wanted; learns what variables stand for when so.
    pub fn assignable(&mut self, a: &Type, b: &Type) -> bool {
        let mut trial = self.clone();
        let fits = trial.fits(a, b);
        if fits {
            *self = trial;
        }
        fits
    }

    /// The same for a row of types.
    pub fn assignable_all(&mut self, a: &[Type], b: &[Type]) -> bool {
        let mut trial = self.clone();
        let fits = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| trial.fits(a, b));
        if fits {
            *self = trial;
        }
        fits
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(_) = b {
            let (valid, bound) = self.substitutes(a, b);
            if valid {
                return true;
            }
            if bound {
                return false;
            }
        }
        if let Type::Param(_) = a {
            return self.substitutes(b, a).0;
        }
        if a.is_dyn_or_error() || b.is_dyn_or_error() {
            return true;
        }
        let nullable = |t: &Type| matches!(t, Type::Null | Type::Opaque(..) | Type::Object(_) | Type::Duration | Type::Timestamp);
        match (a, b) {
            (Type::Null, t) | (t, Type::Null) => nullable(t),
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) => self.fits(a, b),
            (Type::Map(ak, av), Type::Map(bk, bv)) => self.fits(ak, bk) && self.fits(av, bv),
            (Type::Opaque(an, ap), Type::Opaque(bn, bp)) => {
                an == bn && ap.len() == bp.len() && ap.iter().zip(bp.iter()).all(|(a, b)| self.fits(a, b))
            }
            _ => a == b,
        }
    }

    /// Whether variable `b` can stand for `a`, and whether it already stands for something.
    fn substitutes(&mut self, a: &Type, b: &Type) -> (bool, bool) {
        if a == b {
            return (true, true);
        }
        if let Some(bound) = self.find(b).cloned() {
            if *a == bound {
                return (true, true);
            }
            if self.fits(a, &bound) {
                let general = most_general(a, &bound).clone();
                if self.absent(b, &general) {
                    self.add(b, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.absent(b, a) {
            self.add(b, a.clone());
            return (true, false);
        }
        (false, false)
    }

    /// Whether `t` occurs nowhere within `within`.
    fn absent(&self, t: &Type, within: &Type) -> bool {
        if t == within {
            return false;
        }
        match within {
            Type::Param(_) => self.find(within).is_none_or(|bound| self.absent(t, bound)),
            _ => within.params().iter().all(|p| self.absent(t, p)),
        }
    }

    /// The type with known variables replaced, and the unknown ones by `dyn` if that is asked.
    pub fn substitute(&self, t: &Type, to_dyn: bool) -> Type {
        if let Some(bound) = self.find(t) {
            return self.substitute(bound, to_dyn);
        }
        match t {
            Type::Param(_) if to_dyn => Type::Dyn,
            _ => t.rebuild(&mut |t| self.substitute(t, to_dyn)),
        }
    }
}

/// The more general of two types that fit each other.
pub(crate) fn most_general<'a>(a: &'a Type, b: &'a Type) -> &'a Type {
    if less_specific(a, b) { a } else { b }
}

fn less_specific(a: &Type, b: &Type) -> bool {
    if matches!(a, Type::Dyn | Type::Param(_)) {
        return true;
    }
    match (a, b) {
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) => less_specific(a, b),
        (Type::Map(ak, av), Type::Map(bk, bv)) => less_specific(ak, bk) && less_specific(av, bv),
        (Type::Opaque(an, ap), Type::Opaque(bn, bp)) => {
            an == bn && ap.len() == bp.len() && ap.iter().zip(bp.iter()).all(|(a, b)| less_specific(a, b))
        }
        (Type::Type(_), Type::Type(_)) => true,
        _ => a == b,
    }
}
