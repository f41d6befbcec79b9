//! What expressions about API requests may refer to: `object`, `oldObject`, `params`, `request`, `namespaceObject`,
//! `authorizer` and `variables`, as in admission policies and match conditions.

use std::sync::LazyLock;

use crate::env::Env;
use crate::program::Program;
use crate::schema::DeclType;
use crate::types::Type;

/// Which variables there are, and what is known of their types.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variables<'a> {
    /// Whether there is `params`.
    pub params: bool,
    /// Whether there is `authorizer`.
    pub authorizer: bool,
    /// Whether mutations can be written.
    pub mutation: bool,
    /// The type of `object` and `oldObject` with a name for it; without, they are dynamic.
    pub object: Option<(&'a str, &'a DeclType)>,
    /// The type of `params` with a name for it.
    pub params_type: Option<(&'a str, &'a DeclType)>,
}

/// The type of `request`: an AdmissionRequest without uid, object and old object.
pub static REQUEST: LazyLock<DeclType> = LazyLock::new(|| {
    let text = || DeclType::string_of(0);
    let kind = || DeclType::object_of([("group", text()), ("version", text()), ("kind", text())]);
    let resource = || DeclType::object_of([("group", text()), ("version", text()), ("resource", text())]);
    let user = DeclType::object_of([
        ("username", text()),
        ("uid", text()),
        ("groups", DeclType::list_of(text())),
        ("extra", DeclType::map_of(DeclType::list_of(text()), 0)),
    ]);
    DeclType::object_of([
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", text()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", text()),
        ("name", text()),
        ("namespace", text()),
        ("operation", text()),
        ("userInfo", user),
        ("dryRun", DeclType::bool()),
        ("options", DeclType::unknown()),
    ])
});

/// The type of `namespaceObject`: a Namespace without owners and managed fields.
pub static NAMESPACE: LazyLock<DeclType> = LazyLock::new(|| {
    let text = || DeclType::string_of(0);
    let texts = || DeclType::list_of(text());
    let labels = || DeclType::map_of(text(), 0);
    let condition = DeclType::object_of([
        ("status", text()),
        ("type", text()),
        ("lastTransitionTime", DeclType::time()),
        ("message", text()),
        ("reason", text()),
    ]);
    let metadata = DeclType::object_of([
        ("name", text()),
        ("generateName", text()),
        ("namespace", text()),
        ("labels", labels()),
        ("annotations", labels()),
        ("UID", text()),
        ("creationTimestamp", DeclType::time()),
        ("deletionGracePeriodSeconds", DeclType::int()),
        ("deletionTimestamp", DeclType::time()),
        ("generation", DeclType::int()),
        ("resourceVersion", text()),
        ("finalizers", texts()),
    ]);
    DeclType::object_of([
        ("metadata", metadata),
        ("spec", DeclType::object_of([("finalizers", texts())])),
        ("status", DeclType::object_of([("conditions", DeclType::list_of(condition)), ("phase", text())])),
    ])
});

/// The environment of expressions with these variables.
pub fn env(variables: Variables<'_>) -> Env {
    let mut env = if variables.mutation { Env::new().with_mutation() } else { Env::new() };
    env.declare_schema("namespaceObject", "kubernetes.Namespace", &NAMESPACE);
    env.declare_schema("request", "kubernetes.AdmissionRequest", &REQUEST);
    let object = variables.object.map_or(Type::Dyn, |(name, decl)| env.register(name, decl));
    env.declare("object", object.clone());
    env.declare("oldObject", object);
    if variables.params {
        let params = variables.params_type.map_or(Type::Dyn, |(name, decl)| env.register(name, decl));
        env.declare("params", params);
    }
    if variables.authorizer {
        env.declare("authorizer", Type::object("kubernetes.authorization.Authorizer"));
        env.declare("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"));
    }
    env
}

/// Compiles an expression that must have one of these types; the error is what upstream says of it.
pub fn compile(env: &Env, expression: &str, types: &[Type]) -> Result<Program, String> {
    let program = env.compile(expression).map_err(|e| format!("{}{e}", e.prefix()))?;
    let given = program.result_type();
    if types.iter().any(|t| t == given) {
        return Ok(program);
    }
    match types {
        [one] => Err(format!("must evaluate to {} but got {}", plain(one), plain(given))),
        many => {
            let names: Vec<String> = many.iter().map(plain).collect();
            Err(format!("must evaluate to one of [{}] but got {}", names.join(" "), plain(given)))
        }
    }
}

/// A type by its name at run time.
fn plain(t: &Type) -> String {
    match t {
        Type::Null | Type::Timestamp | Type::Duration => t.runtime_name().to_string(),
        _ => t.to_string(),
    }
}
