//! What expressions may refer to: variables with their types, and the objects that those types name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::check::check;
use crate::issues::Issues;
use crate::program::Program;
use crate::schema::DeclType;
use crate::syntax::parse;
use crate::types::Type;

/// The declarations that expressions are compiled against.
///
/// The functions are those of Kubernetes 1.36's base environment; what only some users of CEL have is switched on here.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: Vec<(String, Type)>,
    objects: HashMap<Arc<str>, Arc<HashMap<String, Type>>>,
    options: crate::syntax::Options,
    mutation: bool,
}

impl Env {
    /// The base environment, without variables.
    pub fn new() -> Env {
        Env::default()
    }

    /// With a variable.
    pub fn variable_of(mut self, name: &str, t: Type) -> Env {
        self.declare(name, t);
        self
    }

    /// Declares a variable, or changes its type.
    pub fn declare(&mut self, name: &str, t: Type) {
        match self.variables.iter_mut().find(|(n, _)| n == name) {
            Some(slot) => slot.1 = t,
            None => self.variables.push((name.to_string(), t)),
        }
    }

    /// Declares a variable whose type comes from a schema, and all objects in it under names below `type_name`.
    pub fn declare_schema(&mut self, name: &str, type_name: &str, schema: &DeclType) {
        let t = self.register(type_name, schema);
        self.declare(name, t);
    }

    /// Makes the objects of a schema known under names below `type_name`, and gives its type.
    pub fn register(&mut self, type_name: &str, schema: &DeclType) -> Type {
        let mut objects = Vec::new();
        let t = schema.to_type(type_name, &mut objects);
        for (name, fields) in objects {
            self.objects.insert(name.as_str().into(), Arc::new(fields));
        }
        t
    }

    /// Declares an object type by its fields.
    pub fn declare_object(&mut self, name: &str, fields: impl IntoIterator<Item = (String, Type)>) -> Type {
        self.objects.insert(name.into(), Arc::new(fields.into_iter().collect()));
        Type::object(name)
    }

    /// Adds a field to `variables`: an expression that is given a name.
    pub fn declare_composed(&mut self, name: &str, t: Type) {
        const NAME: &str = "kubernetes.variables";
        let fields = self.objects.entry(NAME.into()).or_default();
        Arc::make_mut(fields).insert(name.to_string(), t);
        self.declare("variables", Type::object(NAME));
    }

    /// With `cel.bind`, which device selectors may use.
    pub fn with_bind(mut self) -> Env {
        self.options.bind = true;
        self
    }

    /// With what mutations are written in: `Object{…}`, `JSONPatch{…}` and `jsonpatch.escapeKey`.
    pub fn with_mutation(mut self) -> Env {
        self.mutation = true;
        self
    }

    /// Compiles an expression: parses, checks and plans it.
    pub fn compile(&self, text: &str) -> Result<Program, Issues> {
        let ast = parse(text, self.options)?;
        let checked = check(self, ast)?;
        Program::plan(checked)
    }

    /// The type of a variable.
    pub fn variable(&self, name: &str) -> Option<&Type> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, t)| t)
    }

    pub(crate) fn has_extra(&self) -> bool {
        self.mutation
    }

    /// The type of a field of an object.
    pub(crate) fn field(&self, object: &str, field: &str) -> Option<Type> {
        if let Some(fields) = self.objects.get(object) {
            if let Some(t) = fields.get(field) {
                return Some(t.clone());
            }
            // A field named like a reserved word is known under its escaped name; both are taken.
            return crate::escape::is_reserved(field).then(|| fields.get(&format!("__{field}__")).cloned()).flatten();
        }
        if !self.mutation {
            return None;
        }
        match (object, field) {
            ("JSONPatch", "op" | "path" | "from") => Some(Type::String),
            ("JSONPatch", "value") => Some(Type::Dyn),
            ("JSONPatch", _) => None,
            _ if object == "Object" || object.starts_with("Object.") => Some(Type::Dyn),
            _ => None,
        }
    }

    /// Whether a literal of an object type can be written.
    pub(crate) fn constructible(&self, object: &str) -> bool {
        self.mutation && (object == "Object" || object == "JSONPatch" || object.starts_with("Object."))
    }
}
