//! The fact table: what Kubernetes' wire formats are, type by type and field by field.
//!
//! The table is the text `data/facts.txt`, parsed once when it is first asked for; all strings
//! borrow from the text. Types have the names that OpenAPI definitions have
//! (`io.k8s.api.core.v1.Pod`). Versions that 1.36 does not serve by default are not in it.
//!
//! Form of the text: `#tag package` opens a package, `=Name [struct type]` a type, `+` is the
//! inlined TypeMeta, every other line a field: `json number type presence [K=V…]`. After `%`
//! come the enumerations.

use std::collections::HashMap;
use std::sync::OnceLock;

static TEXT: &str = include_str!("../data/facts.txt");

/// When a field appears in the normal form of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Always written, `null` for an absent pointer, list, map or time.
    Always,
    /// Left out when empty; structs are never empty, as in Go.
    OmitEmpty,
    /// Left out when zero, structs too.
    OmitZero,
}

/// A named string type with its known values (empty when it is open).
#[derive(Debug)]
pub struct NamedString {
    /// The name Go prints in errors, for example `v1.Protocol`.
    pub go: String,
    /// Allowed values, sorted; empty when any string is allowed.
    pub values: Vec<&'static str>,
}

/// The type of a value.
#[derive(Clone, Copy, Debug)]
pub enum Ty {
    String,
    /// A string of a named Go type.
    Named(&'static NamedString),
    Bool,
    Int32,
    Int64,
    Float64,
    /// base64 in JSON.
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// An embedded object of any kind (`runtime.RawExtension`).
    RawExtension,
    FieldsV1,
    /// Any JSON (`apiextensions.JSON`).
    Json,
    PropsOrArray,
    PropsOrBool,
    PropsOrStrings,
    /// A list of strings that is a message of its own in protobuf.
    Strings,
    Struct(TypeId),
    List(&'static Ty),
    /// Keys are always strings.
    Map(&'static Ty),
}

impl Ty {
    /// The struct type this is or holds, through lists and maps.
    pub fn element(self) -> Option<&'static Type> {
        match self {
            Ty::Struct(id) => Some(id.get()),
            Ty::List(t) | Ty::Map(t) => t.element(),
            _ => None,
        }
    }

    /// The name Go prints for this type in decoding errors.
    pub fn go(self) -> String {
        match self {
            Ty::String => "string".into(),
            Ty::Named(n) => n.go.clone(),
            Ty::Bool => "bool".into(),
            Ty::Int32 => "int32".into(),
            Ty::Int64 => "int64".into(),
            Ty::Float64 => "float64".into(),
            Ty::Bytes => "[]uint8".into(),
            Ty::Time => "v1.Time".into(),
            Ty::MicroTime => "v1.MicroTime".into(),
            Ty::Duration => "v1.Duration".into(),
            Ty::Quantity => "resource.Quantity".into(),
            Ty::IntOrString => "intstr.IntOrString".into(),
            Ty::RawExtension => "runtime.RawExtension".into(),
            Ty::FieldsV1 => "v1.FieldsV1".into(),
            Ty::Json => "v1.JSON".into(),
            Ty::PropsOrArray => "v1.JSONSchemaPropsOrArray".into(),
            Ty::PropsOrBool => "v1.JSONSchemaPropsOrBool".into(),
            Ty::PropsOrStrings => "v1.JSONSchemaPropsOrStringArray".into(),
            Ty::Strings => "[]string".into(),
            Ty::Struct(id) => id.get().go(),
            Ty::List(t) => format!("[]{}", t.go()),
            Ty::Map(Ty::Quantity) => "v1.ResourceList".into(),
            Ty::Map(t) => format!("map[string]{}", t.go()),
        }
    }
}

/// A reference to a struct type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u16);

impl TypeId {
    /// The type itself.
    pub fn get(self) -> &'static Type {
        &table().types[self.0 as usize]
    }
}

/// One field of a struct type.
#[derive(Debug)]
pub struct Field {
    /// JSON name; `^` for an inlined struct.
    pub json: &'static str,
    /// Protobuf number, 0 when the field has no protobuf form.
    pub number: u32,
    pub ty: Ty,
    /// A Go pointer: absent and zero differ.
    pub pointer: bool,
    pub presence: Presence,
    /// The fields of the struct stand in the parent in JSON, in a message of their own in protobuf.
    pub inline: bool,
    /// `map`, `set` or `atomic`.
    pub list_type: Option<&'static str>,
    pub list_map_keys: Vec<&'static str>,
    /// `atomic` or `granular`, of a map or struct field.
    pub map_type: Option<&'static str>,
    /// `merge`, `replace`, `retainKeys` or `merge,retainKeys`.
    pub patch_strategy: Option<&'static str>,
    pub patch_merge_key: Option<&'static str>,
    /// The declared default as JSON text (`"TCP"`, `0`).
    pub default: Option<&'static str>,
    pub required: bool,
    /// OpenAPI string format where it is not implied by the type.
    pub format: Option<&'static str>,
}

/// A struct type.
#[derive(Debug)]
pub struct Type {
    /// `io.k8s.api.core.v1.Pod`
    pub name: &'static str,
    /// `Pod`
    pub short: &'static str,
    /// Has `apiVersion` and `kind`.
    pub type_meta: bool,
    /// `atomic` when the whole struct is one value for apply.
    pub struct_type: Option<&'static str>,
    /// In declaration order, inlined structs as one field.
    pub fields: Vec<Field>,
    flat: OnceLock<Flat>,
}

#[derive(Debug)]
struct Flat {
    /// Sorted by JSON name.
    by_name: Vec<(&'static str, &'static Field)>,
    /// Those that the normal form may have to add.
    forced: Vec<&'static Field>,
    /// Own fields with a protobuf form, in number order.
    numbered: Vec<&'static Field>,
}

static API_VERSION: Field = meta_field("apiVersion");
static KIND: Field = meta_field("kind");

const fn meta_field(json: &'static str) -> Field {
    Field {
        json,
        number: 0,
        ty: Ty::String,
        pointer: false,
        presence: Presence::OmitEmpty,
        inline: false,
        list_type: None,
        list_map_keys: Vec::new(),
        map_type: None,
        patch_strategy: None,
        patch_merge_key: None,
        default: None,
        required: false,
        format: None,
    }
}

impl Type {
    /// The name Go prints, `v1.Pod`.
    pub fn go(&self) -> String {
        let package = &self.name[..self.name.len() - self.short.len() - 1];
        let last = package.rsplit('.').next().unwrap_or(package);
        format!("{last}.{}", self.short)
    }

    /// The field with this JSON name, inlined ones and `apiVersion`, `kind` included.
    pub fn field(&'static self, json: &str) -> Option<&'static Field> {
        let all = self.all();
        all.binary_search_by(|(name, _)| (*name).cmp(json)).ok().map(|i| all[i].1)
    }

    /// All fields as JSON shows them, sorted by name.
    pub fn all(&'static self) -> &'static [(&'static str, &'static Field)] {
        &self.flat().by_name
    }

    /// Fields that an object always shows, empty or not.
    pub fn forced(&'static self) -> &'static [&'static Field] {
        &self.flat().forced
    }

    /// Own fields (inlined structs as one) with a protobuf form, in number order.
    pub fn numbered(&'static self) -> &'static [&'static Field] {
        &self.flat().numbered
    }

    /// The own field with this protobuf number.
    pub fn by_number(&'static self, number: u32) -> Option<&'static Field> {
        let all = self.numbered();
        all.binary_search_by_key(&number, |f| f.number).ok().map(|i| all[i])
    }

    fn flat(&'static self) -> &'static Flat {
        self.flat.get_or_init(|| {
            let mut by_name = Vec::new();
            self.collect(&mut by_name);
            by_name.sort_by_key(|(name, _)| *name);
            let forced = by_name
                .iter()
                .map(|(_, f)| *f)
                .filter(|f| match f.presence {
                    Presence::Always => true,
                    Presence::OmitZero => false,
                    Presence::OmitEmpty => {
                        !f.pointer
                            && matches!(
                                f.ty,
                                Ty::Struct(_)
                                    | Ty::Time
                                    | Ty::MicroTime
                                    | Ty::Duration
                                    | Ty::Quantity
                                    | Ty::IntOrString
                                    | Ty::RawExtension
                                    | Ty::PropsOrArray
                                    | Ty::PropsOrBool
                                    | Ty::PropsOrStrings
                            )
                    }
                })
                .collect();
            let mut numbered: Vec<_> = self.fields.iter().filter(|f| f.number != 0).collect();
            numbered.sort_by_key(|f| f.number);
            Flat { by_name, forced, numbered }
        })
    }

    fn collect(&'static self, into: &mut Vec<(&'static str, &'static Field)>) {
        if self.type_meta {
            into.push(("apiVersion", &API_VERSION));
            into.push(("kind", &KIND));
        }
        for field in &self.fields {
            match field.ty {
                Ty::Struct(id) if field.inline => id.get().collect(into),
                _ => into.push((field.json, field)),
            }
        }
    }
}

/// The type with this OpenAPI definition name.
pub fn type_by_name(name: &str) -> Option<&'static Type> {
    let table = table();
    table.by_name.get(name).map(|id| id.get_in(table))
}

/// A number that changes when the table does.
pub fn fingerprint() -> u64 {
    TEXT.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// All types, in no meaningful order.
pub fn types() -> &'static [Type] {
    &table().types
}

impl TypeId {
    fn get_in(self, table: &'static Table) -> &'static Type {
        &table.types[self.0 as usize]
    }
}

struct Table {
    types: Vec<Type>,
    by_name: HashMap<&'static str, TypeId>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(parse)
}

struct Parser {
    /// `tag:Name` → id
    ids: HashMap<String, TypeId>,
    named: HashMap<String, &'static NamedString>,
    enums: HashMap<&'static str, Vec<&'static str>>,
    /// tag → package
    packages: HashMap<&'static str, &'static str>,
}

fn parse() -> Table {
    let (text, enums) = TEXT.split_once("\n%\n").unwrap_or((TEXT, ""));
    let mut parser = Parser {
        ids: HashMap::new(),
        named: HashMap::new(),
        enums: enums.lines().filter_map(enum_line).collect(),
        packages: HashMap::new(),
    };
    let mut names = Vec::new();
    let (mut tag, mut package) = ("", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix('#') {
            (tag, package) = rest.split_once(' ').unwrap_or((rest, rest));
            parser.packages.insert(tag, package);
        } else if let Some(rest) = line.strip_prefix('=') {
            let short = rest.split(' ').next().unwrap_or(rest);
            parser.ids.insert(format!("{tag}:{short}"), TypeId(names.len() as u16));
            let name: &'static str = format!("{package}.{short}").leak();
            names.push(name);
        }
    }
    let mut types: Vec<Type> = Vec::with_capacity(names.len());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix('#') {
            tag = rest.split(' ').next().unwrap_or(rest);
        } else if let Some(rest) = line.strip_prefix('=') {
            let (short, struct_type) = match rest.split_once(' ') {
                Some((short, kind)) => (short, Some(kind)),
                None => (rest, None),
            };
            types.push(Type {
                name: names[types.len()],
                short,
                type_meta: false,
                struct_type,
                fields: Vec::new(),
                flat: OnceLock::new(),
            });
        } else if let Some(current) = types.last_mut() {
            if line == "+" {
                current.type_meta = true;
            } else {
                current.fields.push(parser.field(tag, line));
            }
        }
    }
    let by_name = names.iter().enumerate().map(|(i, n)| (*n, TypeId(i as u16))).collect();
    Table { types, by_name }
}

fn enum_line(line: &'static str) -> Option<(&'static str, Vec<&'static str>)> {
    let (name, values) = line.split_once(' ')?;
    let values = values.trim_matches(['[', ']']).split(',').map(|v| v.trim_matches('"')).collect();
    Some((name, values))
}

impl Parser {
    fn field(&mut self, tag: &str, line: &'static str) -> Field {
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (json, number, ty, presence) = (next(), next(), next(), next());
        let pointer = ty.starts_with('*');
        let mut field = Field {
            number: number.parse().unwrap_or(0),
            ty: self.ty(tag, ty.strip_prefix('*').unwrap_or(ty)),
            pointer,
            inline: json == "^",
            presence: match presence {
                "?" => Presence::OmitEmpty,
                "0" => Presence::OmitZero,
                _ => Presence::Always,
            },
            ..meta_field(json)
        };
        for word in words {
            match word.split_once('=') {
                Some(("L", v)) => field.list_type = Some(v),
                Some(("K", v)) => field.list_map_keys = v.split(',').collect(),
                Some(("M", v)) => field.map_type = Some(v),
                Some(("S", v)) => field.patch_strategy = Some(v),
                Some(("G", v)) => field.patch_merge_key = Some(v),
                Some(("D", v)) => field.default = Some(v),
                Some(("f", v)) => field.format = Some(v),
                _ => field.required |= word == "r",
            }
        }
        field
    }

    fn ty(&mut self, tag: &str, text: &'static str) -> Ty {
        let rest = &text[1..];
        match text.as_bytes()[0] {
            b's' if rest.is_empty() => Ty::String,
            b's' => Ty::Named(self.named(tag, &rest[1..])),
            b'b' => Ty::Bool,
            b'i' => Ty::Int32,
            b'l' => Ty::Int64,
            b'f' => Ty::Float64,
            b'y' => Ty::Bytes,
            b'T' => Ty::Time,
            b'M' => Ty::MicroTime,
            b'D' => Ty::Duration,
            b'Q' => Ty::Quantity,
            b'I' => Ty::IntOrString,
            b'R' => Ty::RawExtension,
            b'F' => Ty::FieldsV1,
            b'A' => Ty::PropsOrArray,
            b'O' => Ty::PropsOrBool,
            b'P' => Ty::PropsOrStrings,
            b'x' => Ty::Strings,
            b'@' => self.ids.get(&qualify(tag, rest)).map_or(Ty::Json, |id| Ty::Struct(*id)),
            b'[' => Ty::List(Box::leak(Box::new(self.ty(tag, rest)))),
            b'{' => Ty::Map(Box::leak(Box::new(self.ty(tag, rest)))),
            _ => Ty::Json,
        }
    }

    fn named(&mut self, tag: &str, name: &'static str) -> &'static NamedString {
        let key = if name.starts_with("types.") { name.to_owned() } else { qualify(tag, name) };
        if let Some(named) = self.named.get(&key) {
            return named;
        }
        let go = match key.split_once(':') {
            Some((tag, short)) => {
                let package = self.packages.get(tag).copied().unwrap_or(tag);
                format!("{}.{short}", package.rsplit('.').next().unwrap_or(package))
            }
            None => key.clone(),
        };
        let values = self.enums.get(key.as_str()).cloned().unwrap_or_default();
        let named: &'static NamedString = Box::leak(Box::new(NamedString { go, values }));
        self.named.insert(key, named);
        named
    }
}

fn qualify(tag: &str, name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { format!("{tag}:{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_resolves() {
        assert!(types().len() > 600);
        for ty in types() {
            assert!(std::ptr::eq(type_by_name(ty.name).unwrap(), ty));
            for (name, field) in ty.all() {
                assert!(!field.inline, "{}.{name}", ty.name);
            }
        }
    }

    #[test]
    fn a_field_has_its_facts() {
        let spec = type_by_name("io.k8s.api.core.v1.PodSpec").unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!((containers.number, containers.presence), (2, Presence::Always));
        assert_eq!(containers.list_map_keys, ["name"]);
        assert_eq!(containers.ty.go(), "[]v1.Container");
        let port = type_by_name("io.k8s.api.core.v1.ServicePort").unwrap().field("protocol").unwrap();
        assert_eq!(port.default, Some("\"TCP\""));
        assert_eq!(port.ty.go(), "v1.Protocol");
        let Ty::Named(named) = port.ty else { panic!() };
        assert_eq!(named.values, ["SCTP", "TCP", "UDP"]);
    }

    #[test]
    fn inlined_fields_are_found() {
        let volume = type_by_name("io.k8s.api.core.v1.Volume").unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().number, 2);
        let pod = type_by_name("io.k8s.api.core.v1.Pod").unwrap();
        assert!(pod.field("kind").is_some() && pod.field("Kind").is_none());
    }
}
