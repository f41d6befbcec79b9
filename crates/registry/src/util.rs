//! Small helpers over object trees, and the resources this crate reads by name.

use std::sync::LazyLock;

use apiserver::types::Resource;
use serde_json::{Map, Value};

/// The text at a JSON pointer, or "".
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    api::at(value, pointer).and_then(Value::as_str).unwrap_or("")
}

/// The truth at a JSON pointer, or false.
pub(crate) fn flag(value: &Value, pointer: &str) -> bool {
    api::at(value, pointer).and_then(Value::as_bool).unwrap_or(false)
}

/// The number at a JSON pointer.
pub(crate) fn number(value: &Value, pointer: &str) -> Option<i64> {
    api::at(value, pointer).and_then(Value::as_i64)
}

/// The items of the list at a JSON pointer; none if there is no list.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    api::at(value, pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The texts of the list at a JSON pointer.
pub(crate) fn texts<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    items(value, pointer).filter_map(Value::as_str)
}

/// The map at a JSON pointer.
pub(crate) fn map<'a>(value: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    api::at(value, pointer).and_then(Value::as_object)
}

/// The map under `key`, made if it is not there. `value` must be an object.
pub(crate) fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let slot = value.as_object_mut().expect("made above").entry(key).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("made above")
}

/// The list under `key` of an object, made if it is not there.
pub(crate) fn list<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let slot = map.entry(key).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut().expect("made above")
}

/// Go's `%q` of a text.
pub(crate) fn quote(text: &str) -> String {
    format!("{text:?}")
}

/// `n` characters as upstream's `rand.String` makes them (no vowels, nothing that looks alike).
pub(crate) fn random_suffix(n: usize) -> String {
    use rand::RngExt;
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..n).map(|_| ALPHABET[rng.random_range(0..ALPHABET.len())] as char).collect()
}

/// A random (version 4) UUID.
pub(crate) fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A built-in resource, looked up once.
pub(crate) type Res = LazyLock<&'static Resource>;

macro_rules! resources {
    ($($name:ident = $group:literal $version:literal $plural:literal;)*) => {
        $(pub(crate) static $name: Res = LazyLock::new(|| {
            api::resources::find($group, $version, $plural)
                .expect(concat!("the resource table has ", $plural))
        });)*
    };
}

resources! {
    PODS = "" "v1" "pods";
    SERVICES = "" "v1" "services";
    NODES = "" "v1" "nodes";
    NAMESPACES = "" "v1" "namespaces";
    SECRETS = "" "v1" "secrets";
    CONFIG_MAPS = "" "v1" "configmaps";
    SERVICE_ACCOUNTS = "" "v1" "serviceaccounts";
    ENDPOINTS = "" "v1" "endpoints";
    LIMIT_RANGES = "" "v1" "limitranges";
    RESOURCE_QUOTAS = "" "v1" "resourcequotas";
    PERSISTENT_VOLUMES = "" "v1" "persistentvolumes";
    PERSISTENT_VOLUME_CLAIMS = "" "v1" "persistentvolumeclaims";
    ENDPOINT_SLICES = "discovery.k8s.io" "v1" "endpointslices";
    PRIORITY_CLASSES = "scheduling.k8s.io" "v1" "priorityclasses";
    STORAGE_CLASSES = "storage.k8s.io" "v1" "storageclasses";
    VOLUME_ATTACHMENTS = "storage.k8s.io" "v1" "volumeattachments";
    POD_DISRUPTION_BUDGETS = "policy" "v1" "poddisruptionbudgets";
    ROLES = "rbac.authorization.k8s.io" "v1" "roles";
    ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "rolebindings";
    CLUSTER_ROLES = "rbac.authorization.k8s.io" "v1" "clusterroles";
    CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "clusterrolebindings";
    RUNTIME_CLASSES = "node.k8s.io" "v1" "runtimeclasses";
    ADMISSION_POLICIES = "admissionregistration.k8s.io" "v1" "validatingadmissionpolicies";
    ADMISSION_POLICY_BINDINGS = "admissionregistration.k8s.io" "v1" "validatingadmissionpolicybindings";
    MUTATING_POLICIES = "admissionregistration.k8s.io" "v1" "mutatingadmissionpolicies";
    MUTATING_POLICY_BINDINGS = "admissionregistration.k8s.io" "v1" "mutatingadmissionpolicybindings";
    CUSTOM_RESOURCE_DEFINITIONS = "apiextensions.k8s.io" "v1" "customresourcedefinitions";
    MUTATING_HOOKS = "admissionregistration.k8s.io" "v1" "mutatingwebhookconfigurations";
    VALIDATING_HOOKS = "admissionregistration.k8s.io" "v1" "validatingwebhookconfigurations";
    SERVICE_CIDRS = "networking.k8s.io" "v1" "servicecidrs";
    IP_ADDRESSES = "networking.k8s.io" "v1" "ipaddresses";
    EVENTS = "" "v1" "events";
    LEASES = "coordination.k8s.io" "v1" "leases";
}
