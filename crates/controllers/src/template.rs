//! Pod templates: the hash that names what is made of one, and equality.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// The label by which the pods of one replica set are told from those of others; no part of a template.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Letters and digits that form no words.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Names a template: FNV-1a over its JSON and, after a collision, the collision count.
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(&bare(template)).expect("a template is always JSON");
    let mut hash: u32 = 0x811c_9dc5;
    let count = collisions.map(i32::to_le_bytes);
    for byte in json.iter().chain(count.iter().flatten()) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string().bytes().map(|b| ALPHABET[b as usize % ALPHABET.len()] as char).collect()
}

/// Whether two templates make the same pods, whatever their hash label says.
pub fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    bare(a) == bare(b)
}

fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        meta.creation_timestamp = None;
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_label_does_not_count_and_collisions_change_the_name() {
        let a: PodTemplateSpec = serde_json::from_str(r#"{"metadata":{"labels":{"app":"a"}},"spec":{"containers":[{"name":"c"}]}}"#).expect("a template");
        let b: PodTemplateSpec =
            serde_json::from_str(r#"{"metadata":{"labels":{"app":"a","pod-template-hash":"x"}},"spec":{"containers":[{"name":"c"}]}}"#).expect("a template");
        assert!(same(&a, &b));
        assert_eq!(hash(&a, None), hash(&b, None));
        assert_ne!(hash(&a, None), hash(&a, Some(1)));
        assert!(hash(&a, None).bytes().all(|c| ALPHABET.contains(&c)));
        assert_eq!((hash(&a, None).as_str(), hash(&a, Some(1)).as_str()), ("56b5b6b894", "744478658c"), "another hash would roll out every deployment again");
    }
}
