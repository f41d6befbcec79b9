//! Scenarios: what each driver is told of volumes that are written in the old way, and which volumes stay
//! as they are.

use serde_json::{Value, json};

use super::*;

/// A volume of this source, with labels and a node affinity of these requirements.
fn given(source: Value, labels: Value, requirements: Value) -> PersistentVolume {
    let mut object = json!({"metadata": {"name": "pv", "labels": labels}, "spec": {"accessModes": ["ReadWriteOnce"]}});
    object["spec"].as_object_mut().expect("a spec").extend(source.as_object().expect("a source").clone());
    if !requirements.is_null() {
        object["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": requirements}]}});
    }
    serde_json::from_value(object).expect("a volume")
}

/// The spec of a volume for its driver.
fn told(volume: &PersistentVolume) -> Value {
    let new = super::volume(volume).expect("it is handed over").expect("it can be");
    assert_eq!(new.metadata, volume.metadata);
    assert_eq!(super::source(volume).expect("it is handed over").ok(), new.spec.as_ref().and_then(|s| s.csi.clone()));
    json!(new.spec)
}

fn plain(source: Value) -> Value {
    told(&given(source, json!({}), Value::Null))
}

fn refused(source: Value, labels: Value) -> String {
    super::volume(&given(source, labels, Value::Null)).expect("it is handed over").expect_err("it cannot be").to_string()
}

/// A pod's own volume for its driver: the name and the spec.
fn of_pod(source: Value) -> (String, Value) {
    let mut object = json!({"name": "data"});
    object.as_object_mut().expect("an object").extend(source.as_object().expect("a source").clone());
    let volume: Volume = serde_json::from_value(object).expect("a volume");
    let new = inline(&volume, "ns").expect("it is handed over").expect("it can be");
    (new.name_any(), json!(new.spec))
}

fn requirement(key: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": "In", "values": values})
}

/// The requirements of the first term that a driver's spec has.
fn requirements(spec: &Value) -> Value {
    spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"].clone()
}

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";
const OLD_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const OLD_REGION: &str = "failure-domain.beta.kubernetes.io/region";

#[test]
fn each_kind_has_its_driver() {
    let all = [
        ("kubernetes.io/aws-ebs", "ebs.csi.aws.com", true, "awsElasticBlockStore", json!({"volumeID": "v"})),
        ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io", true, "gcePersistentDisk", json!({"pdName": "v"})),
        ("kubernetes.io/cinder", "cinder.csi.openstack.org", true, "cinder", json!({"volumeID": "v"})),
        ("kubernetes.io/azure-disk", "disk.csi.azure.com", true, "azureDisk", json!({"diskName": "v", "diskURI": "u"})),
        ("kubernetes.io/azure-file", "file.csi.azure.com", false, "azureFile", json!({"secretName": "s", "shareName": "v", "secretNamespace": "n"})),
        ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com", false, "vsphereVolume", json!({"volumePath": "v"})),
        ("kubernetes.io/portworx-volume", "pxd.portworx.com", true, "portworxVolume", json!({"volumeID": "v"})),
    ];
    for (name, driver, scheduled, field, source) in all {
        let plugin = by_name(name).expect(name);
        assert_eq!((plugin.driver, plugin.scheduled), (driver, scheduled));
        let volume = given(json!({field: source}), json!({}), Value::Null);
        assert_eq!(of_volume(&volume), Some(plugin));
        let new = told(&volume);
        assert_eq!((&new["csi"]["driver"], &new[field]), (&json!(driver), &Value::Null), "{name}");
        let own: Volume = serde_json::from_value(json!({"name": "x", field: source})).expect("a volume");
        assert_eq!(of_inline(&own), Some(plugin));
        assert_eq!(of_pod(json!({field: source})).1["csi"]["driver"], driver);
    }
}

#[test]
fn other_volumes_stay_as_they_are() {
    for name in ["kubernetes.io/no-provisioner", "kubernetes.io/host-path", "kubernetes.io/rbd", "ebs.csi.aws.com", "rancher.io/local-path", ""] {
        assert_eq!(by_name(name), None, "{name}");
    }
    for source in [
        json!({"csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1"}}),
        json!({"hostPath": {"path": "/x"}}),
        json!({"nfs": {"path": "/x", "server": "s"}}),
        json!({"fc": {"wwids": ["w"]}}),
        json!({"iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}}),
        json!({"rbd": {"image": "i", "monitors": ["m"]}}),
        json!({}),
    ] {
        let volume = given(source, json!({ZONE: "a"}), Value::Null);
        assert!(of_volume(&volume).is_none() && super::volume(&volume).is_none() && super::source(&volume).is_none());
    }
    for source in [json!({"emptyDir": {}}), json!({"persistentVolumeClaim": {"claimName": "c"}}), json!({"csi": {"driver": "ebs.csi.aws.com"}})] {
        let mut volume = source;
        volume["name"] = json!("x");
        let volume: Volume = serde_json::from_value(volume).expect("a volume");
        assert!(of_inline(&volume).is_none() && inline(&volume, "ns").is_none());
    }
}

#[test]
fn a_node_says_what_its_kubelet_hands_over() {
    let node = |list: Value| -> CSINode {
        serde_json::from_value(json!({"metadata": {"name": "n", "annotations": {MIGRATED_PLUGINS: list}}, "spec": {"drivers": []}})).expect("a CSINode")
    };
    let both = node(json!("kubernetes.io/aws-ebs,kubernetes.io/gce-pd"));
    assert!(is_on_node(&AWS_EBS, Some(&both)) && is_on_node(&GCE_PD, Some(&both)));
    assert!(!is_on_node(&CINDER, Some(&both)) && !is_on_node(&AWS_EBS, None));
    assert!(!is_on_node(&AWS_EBS, Some(&node(json!("")))) && !is_on_node(&AWS_EBS, Some(&node(json!("kubernetes.io/aws-ebs-2")))));
    assert!(!is_on_node(&AWS_EBS, Some(&CSINode::default())));
}

#[test]
fn disks_of_amazon() {
    let disk = |more: Value| {
        let mut source = json!({"volumeID": "vol-1"});
        source.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"awsElasticBlockStore": source})
    };
    let csi = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1", "volumeAttributes": {"partition": "0"}});
    assert_eq!(plain(disk(json!({}))), json!({"accessModes": ["ReadWriteOnce"], "csi": csi}));
    let full = plain(disk(json!({"fsType": "xfs", "partition": 2, "readOnly": true})));
    let csi = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1", "fsType": "xfs", "readOnly": true, "volumeAttributes": {"partition": "2"}});
    assert_eq!(full["csi"], csi);
    for (id, handle) in [("aws:///vol-02", Some("vol-02")), ("aws://us-east-1a/vol-02/", Some("vol-02")), ("any-name", Some("any-name")), ("aws://vol-02", None), ("aws://a/disk-1", None), ("aws://a/b/vol-1", None)] {
        assert_eq!(aws_handle(id).ok().as_deref(), handle, "{id}");
    }
    let why = "failed to translate Kubernetes ID to EBS Volume ID Invalid format for AWS volume (aws://a/x)";
    assert_eq!(refused(disk(json!({"volumeID": "aws://a/x"})), json!({})), why);
    let (name, spec) = of_pod(disk(json!({"volumeID": "aws://us-east-1a/vol-9", "readOnly": true})));
    assert_eq!(name, "ebs.csi.aws.com-vol-9");
    let csi = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-9", "readOnly": true, "volumeAttributes": {"partition": "0"}});
    assert_eq!(spec, json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "csi": csi}));
}

#[test]
fn disks_of_google() {
    let disk = || json!({"gcePersistentDisk": {"pdName": "d", "fsType": "ext4", "partition": 1}});
    let handle = |labels: Value| told(&given(disk(), labels, Value::Null))["csi"]["volumeHandle"].clone();
    assert_eq!(handle(json!({})), "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d");
    assert_eq!(handle(json!({ZONE: "us-a1-b"})), "projects/UNSPECIFIED/zones/us-a1-b/disks/d");
    assert_eq!(handle(json!({ZONE: "us-a1-b__us-a1-c"})), "projects/UNSPECIFIED/regions/us-a1/disks/d");
    assert_eq!(handle(json!({ZONE: "us-a1-b", OLD_ZONE: "us-a1-c"})), "projects/UNSPECIFIED/zones/us-a1-c/disks/d", "the older label counts");
    assert_eq!(handle(json!({ZONE: "us-a1-b", OLD_ZONE: ""})), "projects/UNSPECIFIED/zones/us-a1-b/disks/d");
    let regions = "failed to get region from zones: multiple or no regions gotten from zones, got: map[eu-w1:{} us-a1:{}]";
    assert_eq!(refused(disk(), json!({ZONE: "us-a1-b__eu-w1-b"})), regions);
    let zone = "failed to get region from zones: zone in unexpected format, expected: {locale}-{region}-{zone}, got: b";
    assert_eq!(refused(disk(), json!({ZONE: "us-a1-b__b"})), zone);
    let csi = json!({"driver": "pd.csi.storage.gke.io", "volumeHandle": gce_handle("d"), "fsType": "ext4", "volumeAttributes": {"partition": "1"}});
    assert_eq!(plain(disk()), json!({"accessModes": ["ReadWriteOnce"], "csi": csi}));
    for (old, new) in [
        (json!(["ReadWriteMany"]), json!(["ReadWriteOnce"])),
        (json!(["ReadOnlyMany"]), json!(["ReadOnlyMany"])),
        (json!(["ReadOnlyMany", "ReadWriteOnce"]), json!(["ReadWriteOnce"])),
        (json!(["ReadOnlyMany", "ReadWriteMany"]), json!(["ReadWriteOnce"])),
        (json!(["ReadWriteOncePod"]), json!(["ReadWriteOnce"])),
        (Value::Null, Value::Null),
    ] {
        let mut source = disk();
        source["accessModes"] = old.clone();
        assert_eq!(plain(source)["accessModes"], new, "{old}");
    }
    let (name, spec) = of_pod(json!({"gcePersistentDisk": {"pdName": "d", "readOnly": true}}));
    let csi = json!({"driver": "pd.csi.storage.gke.io", "volumeHandle": gce_handle("d"), "readOnly": true, "volumeAttributes": {"partition": ""}});
    assert_eq!((name.as_str(), spec), ("pd.csi.storage.gke.io-d", json!({"accessModes": ["ReadOnlyMany"], "volumeMode": "Filesystem", "csi": csi})));
    assert_eq!(of_pod(json!({"gcePersistentDisk": {"pdName": "d"}})).1["accessModes"], json!(["ReadWriteOnce"]));
}

#[test]
fn disks_of_openstack() {
    let disk = || json!({"cinder": {"volumeID": "c", "fsType": "ext4", "readOnly": true}});
    let csi = json!({"driver": "cinder.csi.openstack.org", "volumeHandle": "c", "fsType": "ext4", "readOnly": true});
    assert_eq!(plain(disk())["csi"], csi);
    assert_eq!(of_pod(disk()), ("cinder.csi.openstack.org-c".into(), json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "csi": csi})));
}

#[test]
fn disks_of_azure() {
    let disk = |more: Value| {
        let mut source = json!({"diskName": "d", "diskURI": "/subscriptions/s/disks/d"});
        source.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"azureDisk": source})
    };
    let csi = |attributes: Value| json!({"driver": "disk.csi.azure.com", "volumeHandle": "/subscriptions/s/disks/d", "volumeAttributes": attributes});
    assert_eq!(plain(disk(json!({"kind": "managed"})))["csi"], csi(json!({"kind": "Managed"})));
    let full = plain(disk(json!({"kind": "Managed", "cachingMode": "ReadOnly", "fsType": "ext4", "readOnly": true})));
    let mut expected = csi(json!({"kind": "Managed", "cachingmode": "ReadOnly", "fstype": "ext4"}));
    expected["fsType"] = json!("ext4");
    expected["readOnly"] = json!(true);
    assert_eq!(full["csi"], expected);
    for kind in ["Dedicated", "Shared"] {
        assert_eq!(refused(disk(json!({"kind": kind})), json!({})), format!("kind({kind}) is not supported in csi migration"));
    }
    // What is given but empty is told of volumes, and of a pod's own only where it is a file system.
    let empty = || disk(json!({"cachingMode": "", "fsType": ""}));
    assert_eq!(plain(empty())["csi"], csi(json!({"kind": "Managed", "cachingmode": "", "fstype": ""})));
    let (name, spec) = of_pod(empty());
    assert_eq!((name.as_str(), &spec["csi"]), ("/subscriptions/s/disks/d", &csi(json!({"kind": "Managed", "fstype": ""}))));
    assert_eq!((&spec["accessModes"], &spec["volumeMode"]), (&json!(["ReadWriteOnce"]), &json!("Filesystem")));
    // Its nodes are labelled as all are.
    let volume = given(disk(json!({})), json!({}), json!([requirement(ZONE, &["westus-1"])]));
    assert_eq!(requirements(&told(&volume)), json!([requirement(ZONE, &["westus-1"])]));
    assert!(told(&given(disk(json!({})), json!({ZONE: "westus-1"}), Value::Null))["nodeAffinity"].is_null());
}

#[test]
fn shares_of_azure() {
    let share = |secret: &str, namespace: Value| json!({"azureFile": {"secretName": secret, "shareName": "sh", "secretNamespace": namespace, "readOnly": true}});
    let csi = |handle: &str, secret: &str, namespace: &str| {
        json!({"driver": "file.csi.azure.com", "volumeHandle": handle, "readOnly": true, "volumeAttributes": {"sharename": "sh"},
            "nodeStageSecretRef": {"name": secret, "namespace": namespace}})
    };
    let secret = "azure-storage-account-acc-secret";
    assert_eq!(plain(share(secret, json!("sec")))["csi"], csi("#acc#sh#pv#sec", secret, "sec"));
    assert_eq!(plain(share("mine", json!("sec")))["csi"], csi("#mine#sh#pv#sec", "mine", "sec"));
    assert_eq!(plain(share("azure-storage-account--secret", json!("sec")))["csi"]["volumeHandle"], "#azure-storage-account--secret#sh#pv#sec");
    let mut of_claim = share(secret, Value::Null);
    of_claim["claimRef"] = json!({"namespace": "cl", "name": "c"});
    assert_eq!(plain(of_claim)["csi"], csi("#acc#sh#pv#cl", secret, "cl"));
    let why = "could not find a secret namespace in PersistentVolumeSource or ClaimRef";
    assert_eq!((refused(share(secret, Value::Null), json!({})), refused(share(secret, json!("")), json!({}))), (why.into(), why.into()));
    let mut in_group = given(share(secret, json!("sec")), json!({}), Value::Null);
    in_group.annotations_mut().insert("kubernetes.io/azure-file-resource-group".into(), "rg".into());
    assert_eq!(told(&in_group)["csi"]["volumeHandle"], "rg#acc#sh#pv#sec");
    let (name, spec) = of_pod(json!({"azureFile": {"secretName": secret, "shareName": "sh", "readOnly": true}}));
    assert_eq!((name.as_str(), &spec["csi"], &spec["accessModes"]), ("#acc#sh#data#ns", &csi("#acc#sh#data#ns", secret, "ns"), &json!(["ReadWriteMany"])));
}

#[test]
fn disks_of_vsphere() {
    let disk = || json!({"vsphereVolume": {"volumePath": "[ds] v.vmdk", "fsType": "ext4", "storagePolicyName": "gold", "storagePolicyID": "7"}});
    let csi = json!({"driver": "csi.vsphere.vmware.com", "volumeHandle": "[ds] v.vmdk", "fsType": "ext4", "volumeAttributes": {"storagepolicyname": "gold"}});
    assert_eq!(plain(disk())["csi"], csi);
    assert_eq!(of_pod(disk()), ("csi.vsphere.vmware.com-[ds] v.vmdk".into(), json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "csi": csi})));
    let (zone, region) = ("topology.csi.vmware.com/zone", "topology.csi.vmware.com/region");
    let by_label = told(&given(disk(), json!({OLD_ZONE: "z__y", OLD_REGION: "r"}), Value::Null));
    assert_eq!(requirements(&by_label), json!([requirement(zone, &["z__y"]), requirement(region, &["r"])]), "it is one name");
    let by_affinity = told(&given(disk(), json!({ZONE: "other"}), json!([requirement(ZONE, &["z"]), requirement(REGION, &["r"])])));
    assert_eq!(requirements(&by_affinity), json!([requirement(zone, &["z"]), requirement(region, &["r"])]));
}

#[test]
fn volumes_of_portworx() {
    let disk = || json!({"portworxVolume": {"volumeID": "p", "fsType": "ext4", "readOnly": true}});
    let csi = json!({"driver": "pxd.portworx.com", "volumeHandle": "p", "fsType": "ext4"});
    assert_eq!(plain(disk())["csi"], csi);
    let mut volume = given(disk(), json!({}), Value::Null);
    volume.annotations_mut().insert("openstorage.io/auth-secret-name".into(), "s".into());
    assert_eq!(told(&volume)["csi"], csi, "half a reference is none");
    volume.annotations_mut().insert("openstorage.io/auth-secret-namespace".into(), "n".into());
    let secret = json!({"name": "s", "namespace": "n"});
    let mut full = csi.clone();
    for key in ["controllerPublishSecretRef", "nodeStageSecretRef", "nodePublishSecretRef", "controllerExpandSecretRef", "nodeExpandSecretRef"] {
        full[key] = secret.clone();
    }
    assert_eq!(told(&volume)["csi"], full);
    let (name, spec) = of_pod(disk());
    assert_eq!((name.as_str(), spec), ("pxd.portworx.com-p", json!({"accessModes": ["ReadOnlyMany"], "volumeMode": "Filesystem", "csi": csi})));
}

#[test]
fn zones_become_the_drivers() {
    let drivers = [
        ("topology.ebs.csi.aws.com/zone", json!({"awsElasticBlockStore": {"volumeID": "v"}})),
        ("topology.gke.io/zone", json!({"gcePersistentDisk": {"pdName": "v"}})),
        ("topology.cinder.csi.openstack.org/zone", json!({"cinder": {"volumeID": "v"}})),
    ];
    for (key, source) in drivers {
        let of = |labels: Value, affinity: Value| requirements(&told(&given(source.clone(), labels, affinity)));
        assert_eq!(of(json!({}), Value::Null), Value::Null);
        assert_eq!(of(json!({ZONE: "a-b-d__a-b-c"}), Value::Null), json!([requirement(key, &["a-b-c", "a-b-d"])]));
        assert_eq!(of(json!({OLD_ZONE: "a-b-c", OLD_REGION: "a-b"}), Value::Null), json!([requirement(key, &["a-b-c"])]));
        let host = requirement("kubernetes.io/hostname", &["h"]);
        assert_eq!(of(json!({ZONE: "a-b-c"}), json!([host])), json!([host, requirement(key, &["a-b-c"])]));
        // An affinity of its own comes before the labels, and regions get their present name.
        assert_eq!(of(json!({ZONE: "a-b-c"}), json!([host, requirement(ZONE, &["a-b-d"])])), json!([host, requirement(key, &["a-b-d"])]));
        let old = json!([requirement(OLD_ZONE, &["a-b-c"]), requirement(OLD_REGION, &["a-b"])]);
        assert_eq!(of(json!({}), old), json!([requirement(key, &["a-b-c"]), requirement(REGION, &["a-b"])]));
        let current = json!([requirement(ZONE, &["a-b-c"]), requirement(OLD_REGION, &["a-b"])]);
        assert_eq!(of(json!({}), current), json!([requirement(key, &["a-b-c"]), requirement(OLD_REGION, &["a-b"])]));
    }
}

#[test]
fn every_term_gets_its_zone() {
    let mut volume = given(json!({"awsElasticBlockStore": {"volumeID": "v"}}), json!({ZONE: " b __a__"}), Value::Null);
    let term = |host: &str| json!({"matchExpressions": [requirement("h", &[host])]});
    volume.spec.as_mut().expect("a spec").node_affinity = serde_json::from_value(json!({"required": {"nodeSelectorTerms": [term("1"), term("2")]}})).expect("an affinity");
    let zone = requirement("topology.ebs.csi.aws.com/zone", &["a", "b"]);
    let expected = json!([{"matchExpressions": [requirement("h", &["1"]), zone]}, {"matchExpressions": [requirement("h", &["2"]), zone]}]);
    assert_eq!(told(&volume)["nodeAffinity"]["required"]["nodeSelectorTerms"], expected);
}
