//! The functions that expressions can call: a table of overloads, read once.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::types::Type;

/// One way to call a function.
#[derive(Debug)]
pub(crate) struct Overload {
    /// Upstream's name of it: costs depend on it.
    pub id: String,
    /// Whether the first argument stands before the dot.
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
    /// Whether there are type variables in it.
    pub generic: bool,
}

/// A function.
#[derive(Debug)]
pub(crate) struct Function {
    pub name: String,
    pub overloads: Vec<Overload>,
    /// Whether it is there only where an environment asks for it.
    pub extra: bool,
}

static TABLE: LazyLock<HashMap<String, Function>> = LazyLock::new(|| read(include_str!("decls.txt")));

/// A function by its name.
pub(crate) fn function(name: &str) -> Option<&'static Function> {
    TABLE.get(name)
}

/// Types whose values have an order, and those that can be added up.
const COMPARABLE: &[(&str, Type)] = &[
    ("int", Type::Int),
    ("uint", Type::Uint),
    ("double", Type::Double),
    ("bool", Type::Bool),
    ("duration", Type::Duration),
    ("timestamp", Type::Timestamp),
    ("string", Type::String),
    ("bytes", Type::Bytes),
];
const SUMMABLE: &[&str] = &["int", "uint", "double", "duration"];

fn read(table: &str) -> HashMap<String, Function> {
    let mut functions: HashMap<String, Function> = HashMap::new();
    for line in table.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let mut words = line.split(' ');
        let (name, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (args, result) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (extra, name) = name.strip_prefix('?').map_or((false, name), |n| (true, n));
        let (member, name) = name.strip_prefix('.').map_or((false, name), |n| (true, n));
        let function =
            functions.entry(name.to_string()).or_insert_with(|| Function { name: name.to_string(), overloads: Vec::new(), extra });
        if !id.contains('%') {
            function.overloads.push(overload(id, member, args, result, None));
            continue;
        }
        // One overload for each type that the place holder can be.
        for (name, t) in COMPARABLE.iter().filter(|(name, _)| !line.contains("<N>") || SUMMABLE.contains(name)) {
            function.overloads.push(overload(&id.replace('%', name), member, args, result, Some(t)));
        }
    }
    functions
}

fn overload(id: &str, member: bool, args: &str, result: &str, stand_in: Option<&Type>) -> Overload {
    let parse = |text: &str| Parser { text, stand_in, generic: false }.run();
    let (args, mut generic) = if args == "-" { (Vec::new(), false) } else { parse(args) };
    let (mut result, in_result) = parse(result);
    generic |= in_result;
    Overload { id: id.to_string(), member, args, result: result.pop().unwrap_or(Type::Dyn), generic }
}

struct Parser<'a> {
    text: &'a str,
    stand_in: Option<&'a Type>,
    generic: bool,
}

impl Parser<'_> {
    fn run(mut self) -> (Vec<Type>, bool) {
        let types = self.row();
        (types, self.generic)
    }

    fn row(&mut self) -> Vec<Type> {
        let mut types = Vec::new();
        loop {
            types.push(self.one());
            match self.text.strip_prefix(',') {
                Some(rest) => self.text = rest,
                None => return types,
            }
        }
    }

    fn one(&mut self) -> Type {
        let end = self.text.find(['<', '>', ',']).unwrap_or(self.text.len());
        let (name, rest) = self.text.split_at(end);
        self.text = rest;
        let mut params = match self.text.strip_prefix('<') {
            Some(rest) => {
                self.text = rest;
                let params = self.row();
                self.text = self.text.strip_prefix('>').unwrap_or(self.text);
                params
            }
            None => Vec::new(),
        };
        match name {
            "dyn" => Type::Dyn,
            "bool" => Type::Bool,
            "int" => Type::Int,
            "uint" => Type::Uint,
            "double" => Type::Double,
            "string" => Type::String,
            "bytes" => Type::Bytes,
            "timestamp" => Type::Timestamp,
            "duration" => Type::Duration,
            "list" => Type::list(params.remove(0)),
            "map" => Type::map(params.remove(0), params.remove(0)),
            "type" => Type::Type(Some(params.remove(0).into())),
            "optional_type" => Type::optional(params.remove(0)),
            "net.IP" | "net.CIDR" => Type::Opaque(name.into(), [].into()),
            "C" | "N" => self.stand_in.cloned().unwrap_or(Type::Dyn),
            _ if name.len() == 1 => {
                self.generic = true;
                Type::Param(u32::from(name.as_bytes()[0] - b'A'))
            }
            _ => Type::object(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let sort = function("sort").unwrap();
        assert_eq!(sort.overloads.len(), 8);
        assert_eq!(sort.overloads[6].id, "list_string_sort");
        assert_eq!(function("sum").unwrap().overloads.len(), 4);
        let query = &function("getQuery").unwrap().overloads[0];
        assert_eq!(query.result.to_string(), "map(string, list(string))");
        assert!(function("_==_").unwrap().overloads[0].generic);
        assert!(!function("startsWith").unwrap().overloads[0].generic);
    }
}
