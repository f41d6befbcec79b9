//! Values that only functions look into: addresses, quantities, versions, formats, and questions to an authorizer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use api::quantity::Quantity;

use super::Value;
use crate::functions::named_format::NamedFormat;
use crate::functions::semver::Semver;
use crate::functions::url::Url;
use crate::types::Type;

/// A value of a library's type.
#[derive(Clone, Debug)]
pub enum Opaque<'a> {
    Quantity(Arc<Quantity>),
    Semver(Arc<Semver>),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(Cidr),
    Format(&'static NamedFormat),
    /// A question to an authorizer, as far as it has been asked.
    Check(Arc<Check<'a>>),
    /// What the authorizer answered.
    Decision(Arc<Decision>),
    /// An object that an expression wrote down.
    Object(Arc<ObjectLiteral<'a>>),
}

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub bits: u8,
}

/// An object that an expression wrote down, with its type's name.
#[derive(Clone, Debug)]
pub struct ObjectLiteral<'a> {
    pub type_name: String,
    pub fields: BTreeMap<String, Value<'a>>,
}

/// Who may do what: asked by `authorizer` in expressions. It must be cheap, for it is asked in the middle of an evaluation.
pub trait Authorizer: Sync {
    /// Answers one question.
    fn authorize(&self, request: &AccessRequest) -> Decision;
}

/// A question to the authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRequest {
    /// Namespace and name of the service account that is asked about, instead of the one who makes the request.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    /// The path of a request that is for no resource.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: Option<String>,
    pub label_selector: Option<String>,
}

/// The answer of an authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// How far a question has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

/// A question to an authorizer, as far as it has been asked.
#[derive(Clone)]
pub struct Check<'a> {
    pub(crate) authorizer: &'a (dyn Authorizer + 'a),
    pub(crate) stage: Stage,
    pub(crate) request: AccessRequest,
}

impl fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("stage", &self.stage).field("request", &self.request).finish()
    }
}

impl<'a> Value<'a> {
    /// The `authorizer` variable.
    pub fn authorizer(authorizer: &'a (dyn Authorizer + 'a)) -> Value<'a> {
        let check = Check { authorizer, stage: Stage::Authorizer, request: AccessRequest::default() };
        Value::Opaque(Opaque::Check(Arc::new(check)))
    }

    /// The `authorizer.requestResource` variable: a question about the resource of a request.
    pub fn request_resource(authorizer: &'a (dyn Authorizer + 'a), request: AccessRequest) -> Value<'a> {
        Value::Opaque(Opaque::Check(Arc::new(Check { authorizer, stage: Stage::Resource, request })))
    }

    /// A quantity.
    pub fn quantity(quantity: Quantity) -> Value<'a> {
        Value::Opaque(Opaque::Quantity(Arc::new(quantity)))
    }

    /// A semantic version; none when the text is none.
    pub fn semver(text: &str) -> Option<Value<'a>> {
        Semver::parse(text).ok().map(|v| Value::Opaque(Opaque::Semver(Arc::new(v))))
    }
}

impl Opaque<'_> {
    /// The type's name, as declarations know it.
    pub(crate) fn type_of(&self) -> Type {
        match self {
            Opaque::Quantity(_) => Type::object("kubernetes.Quantity"),
            Opaque::Semver(_) => Type::object("kubernetes.Semver"),
            Opaque::Url(_) => Type::object("kubernetes.URL"),
            Opaque::Ip(_) => Type::Opaque("net.IP".into(), [].into()),
            Opaque::Cidr(_) => Type::Opaque("net.CIDR".into(), [].into()),
            Opaque::Format(_) => Type::object("kubernetes.NamedFormat"),
            Opaque::Check(check) => Type::object(match check.stage {
                Stage::Authorizer => "kubernetes.authorization.Authorizer",
                Stage::Path => "kubernetes.authorization.PathCheck",
                Stage::Group => "kubernetes.authorization.GroupCheck",
                Stage::Resource => "kubernetes.authorization.ResourceCheck",
            }),
            Opaque::Decision(_) => Type::object("kubernetes.authorization.Decision"),
            Opaque::Object(object) => Type::object(&object.type_name),
        }
    }

    /// The size that costs see.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Opaque::Ip(IpAddr::V4(_)) => 4,
            Opaque::Ip(IpAddr::V6(_)) => 16,
            Opaque::Cidr(cidr) => u64::from(cidr.bits).div_ceil(8),
            _ => 1,
        }
    }

    /// Whether two values are the same.
    pub(crate) fn same(&self, other: &Opaque<'_>) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a.compare(b).is_eq(),
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            (Opaque::Decision(a), Opaque::Decision(b)) => a == b,
            (Opaque::Check(a), Opaque::Check(b)) => a.stage == b.stage && a.request == b.request,
            (Opaque::Object(a), Opaque::Object(b)) => {
                a.type_name == b.type_name
                    && a.fields.len() == b.fields.len()
                    && a.fields.iter().all(|(k, v)| b.fields.get(k).is_some_and(|w| super::equal(v, w)))
            }
            _ => false,
        }
    }
}

/// An object that an expression wrote down.
pub(crate) fn object_literal<'a>(type_name: String, fields: BTreeMap<String, Value<'a>>) -> ObjectLiteral<'a> {
    ObjectLiteral { type_name, fields }
}
