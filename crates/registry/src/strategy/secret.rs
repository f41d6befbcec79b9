//! Secrets: `stringData` is for writing only, and the type stays when a client leaves it out.

use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::{Ctx, Strategy};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::util::object;

/// The resource's own rules.
pub(crate) struct Secrets;

impl Strategy for Secrets {
    fn prepare_create(&self, ctx: &Ctx, secret: &mut Value) {
        generic_prepare_create(ctx, secret);
        encode(secret);
    }

    fn warnings_on_create(&self, _ctx: &Ctx, secret: &Value) -> Vec<String> {
        key_pair(secret)
    }

    fn warnings_on_update(&self, _ctx: &Ctx, new: &Value, _old: &Value) -> Vec<String> {
        key_pair(new)
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        encode(new);
        if new.get("type").is_none()
            && let Some(kind) = old.get("type")
        {
            new["type"] = kind.clone();
        }
    }
}

/// What is wrong with the key pair of a Secret that is to have one.
fn key_pair(secret: &Value) -> Vec<String> {
    if secret["type"] != "kubernetes.io/tls" {
        return Vec::new();
    }
    let data = |key: &str| secret["data"][key].as_str().and_then(|v| STANDARD.decode(v).ok()).unwrap_or_default();
    pki::key_pair_mistake(&data("tls.crt"), &data("tls.key")).into_iter().collect()
}

fn encode(secret: &mut Value) {
    let Some(Value::Object(plain)) = secret.as_object_mut().and_then(|s| s.remove("stringData")) else { return };
    let data = object(secret, "data");
    for (key, value) in plain {
        data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use crate::util::SECRETS;
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn string_data() {
        let ctx = Objects::new().ctx(&SECRETS, "a", "s", UserInfo::default());
        let mut secret = json!({"metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"b": "y"}});
        Secrets.prepare_create(&ctx, &mut secret);
        assert_eq!(secret, json!({"metadata": {"name": "s"}, "data": {"a": "eA==", "b": "eQ=="}}));
    }
}
