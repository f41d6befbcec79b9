//! The descriptions of types and fields, unpacked for as long as a document is being made.

use std::collections::HashMap;
use std::io::Read as _;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.z"));

/// Descriptions by definition name.
pub struct Descriptions {
    types: HashMap<String, Texts>,
}

#[derive(Default)]
struct Texts {
    text: String,
    fields: HashMap<String, String>,
}

impl Descriptions {
    /// Unpacks all of them.
    pub fn load() -> Descriptions {
        let mut text = String::new();
        // the bytes were packed by our own build
        let _ = flate2::read::ZlibDecoder::new(PACKED).read_to_string(&mut text);
        let mut types: HashMap<String, Texts> = HashMap::new();
        let mut current = String::new();
        for line in text.lines() {
            let Some((name, text)) = line.split_once('\t') else { continue };
            let text = text.replace('\u{1}', "\n");
            if let Some(definition) = name.strip_prefix('=') {
                current = definition.to_owned();
                types.entry(current.clone()).or_default().text = text;
            } else if let Some(texts) = types.get_mut(&current) {
                texts.fields.insert(name.to_owned(), text);
            }
        }
        Descriptions { types }
    }

    /// No descriptions, for who wants the schemas alone.
    pub fn none() -> Descriptions {
        Descriptions { types: HashMap::new() }
    }

    /// What a type is.
    pub fn of_type(&self, definition: &str) -> Option<&str> {
        self.types.get(definition).map(|t| t.text.as_str()).filter(|t| !t.is_empty())
    }

    /// What a field is, by its JSON name.
    pub fn of_field(&self, definition: &str, json: &str) -> Option<&str> {
        let name: String = json.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        let fields = &self.types.get(definition)?.fields;
        fields.get(&name).or_else(|| fields.get(&format!("{name}path"))).map(String::as_str)
    }
}

/// Cheap mark of the content, for hashes of documents.
pub fn fingerprint() -> u64 {
    super::fnv(PACKED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_their_text() {
        let d = Descriptions::load();
        let pod = "io.k8s.api.core.v1.PodSpec";
        assert!(d.of_type(pod).unwrap().starts_with("PodSpec is a description"));
        assert!(d.of_field(pod, "containers").unwrap().contains("containers belonging to the pod"));
        assert!(d.of_field(pod, "hostIPC").is_some() && d.of_field(pod, "setHostnameAsFQDN").is_some());
        let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        assert!(d.of_field(props, "x-kubernetes-list-type").is_some());
    }
}
