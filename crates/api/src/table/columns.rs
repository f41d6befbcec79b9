//! The columns of each kind's table.

/// A column's definition, as in `metav1.TableColumnDefinition`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column with the object's name.
    pub format: &'static str,
    /// What the cells tell.
    pub description: &'static str,
    /// 0 is always shown, 1 only in wide output.
    pub priority: i32,
}

const fn col(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { name, kind, format: "", description, priority: 0 }
}

const fn text(name: &'static str, description: &'static str) -> Column {
    col(name, "string", description)
}

const fn int(name: &'static str, description: &'static str) -> Column {
    col(name, "integer", description)
}

const fn flag(name: &'static str, description: &'static str) -> Column {
    col(name, "boolean", description)
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { priority: 1, ..text(name, description) }
}

const NAME: Column = Column { format: "name", ..text("Name", "Name of the object, unique in its namespace for its resource.") };
const AGE: Column = text("Age", "Time since the object was created.");
const CONTAINERS: Column = wide("Containers", "Names of the containers in the template.");
const IMAGES: Column = wide("Images", "Images of the containers in the template.");
const SELECTOR: Column = wide("Selector", "Labels by which the pods are found.");

const DEFAULT: &[Column] = &[NAME, col("Created At", "date", "Time when the object was created.")];
const NAME_AGE: &[Column] = &[NAME, AGE];
const PODS: &[Column] = &[
    NAME,
    text("Ready", "How many of the pod's containers are ready."),
    text("Status", "State of the pod, summed up from its containers."),
    text("Restarts", "How often containers of the pod were restarted, and when last."),
    AGE,
    wide("IP", "Address of the pod."),
    wide("Node", "Node that the pod runs on."),
    wide("Nominated Node", "Node on which room is made for the pod."),
    wide("Readiness Gates", "How many of the pod's readiness gates are open."),
];
const REPLICAS: &[Column] = &[
    NAME,
    int("Desired", "Number of pods wanted."),
    int("Current", "Number of pods that there are."),
    int("Ready", "Number of pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const ROLE_BINDINGS: &[Column] = &[
    NAME,
    text("Role", "Role that is granted."),
    AGE,
    wide("Users", "Users that it is granted to."),
    wide("Groups", "Groups that it is granted to."),
    wide("ServiceAccounts", "Service accounts that it is granted to."),
];
const WEBHOOKS: &[Column] = &[NAME, int("Webhooks", "Number of webhooks in the configuration."), AGE];
const POLICY_BINDING: &[Column] =
    &[NAME, text("PolicyName", "Policy that is bound."), text("ParamRef", "Object with the policy's parameters."), AGE];

/// The columns of a kind. Kinds without columns of their own have name and creation time.
pub fn columns(group: &str, kind: &str) -> &'static [Column] {
    match (group, kind) {
        ("", "Pod") => PODS,
        ("", "PodTemplate") => const { &[
            NAME,
            text("Containers", "Names of the containers in the template."),
            text("Images", "Images of the containers in the template."),
            text("Pod Labels", "Labels that the template gives to pods."),
        ] },
        ("policy", "PodDisruptionBudget") => const { &[
            NAME,
            text("Min Available", "Least number of pods that must stay available."),
            text("Max Unavailable", "Most pods that may be unavailable."),
            int("Allowed Disruptions", "Number of pods that may be evicted now."),
            AGE,
        ] },
        ("", "ReplicationController") | ("apps", "ReplicaSet") => REPLICAS,
        ("apps", "DaemonSet") => const { &[
            NAME,
            int("Desired", "Number of nodes that should run the pod."),
            int("Current", "Number of nodes that run the pod and should."),
            int("Ready", "Number of pods that are ready."),
            int("Up-to-date", "Number of nodes that run the current template."),
            int("Available", "Number of pods that are available."),
            text("Node Selector", "Labels of the nodes that should run the pod."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ] },
        ("batch", "Job") => const { &[
            NAME,
            text("Status", "State of the job."),
            text("Completions", "How many pods have succeeded, of how many wanted."),
            text("Duration", "Time that the job has run or took."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ] },
        ("batch", "CronJob") => const { &[
            NAME,
            text("Schedule", "When jobs are started, in cron format."),
            text("Timezone", "Time zone of the schedule."),
            flag("Suspend", "Whether no further jobs are started."),
            int("Active", "Number of jobs that run."),
            text("Last Schedule", "Time since a job was last started."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ] },
        ("", "Service") => const { &[
            NAME,
            text("Type", "How the service is exposed."),
            text("Cluster-IP", "Address of the service in the cluster."),
            text("External-IP", "Addresses of the service outside of the cluster."),
            text("Port(s)", "Ports of the service, and their node ports."),
            AGE,
            SELECTOR,
        ] },
        ("networking.k8s.io", "Ingress") => const { &[
            NAME,
            text("Class", "IngressClass that serves it."),
            text("Hosts", "Host names that the rules are for."),
            text("Address", "Addresses at which it is reached."),
            text("Ports", "Ports that are open."),
            AGE,
        ] },
        ("networking.k8s.io", "IngressClass") => const { &[
            NAME,
            text("Controller", "Controller that serves the class."),
            text("Parameters", "Object with the controller's parameters."),
            AGE,
        ] },
        ("networking.k8s.io", "NetworkPolicy") => const { &[NAME, text("Pod-Selector", "Labels of the pods that it is about."), AGE] },
        ("networking.k8s.io", "ServiceCIDR") => const { &[NAME, text("CIDRs", "Ranges that service addresses are taken from."), AGE] },
        ("networking.k8s.io", "IPAddress") => const { &[NAME, text("ParentRef", "Object that has the address.")] },
        ("apps", "StatefulSet") => const { &[NAME, text("Ready", "How many pods are ready, of how many wanted."), AGE, CONTAINERS, IMAGES] },
        ("apps", "Deployment") => const { &[
            NAME,
            text("Ready", "How many pods are ready, of how many wanted."),
            text("Up-to-date", "Number of pods that have the current template."),
            text("Available", "Number of pods that are available."),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ] },
        ("apps", "ControllerRevision") => {
            const { &[NAME, text("Controller", "Object whose state it keeps."), text("Revision", "Number of the state."), AGE] }
        }
        ("", "Endpoints") => const { &[NAME, text("Endpoints", "Addresses and ports behind the service."), AGE] },
        ("discovery.k8s.io", "EndpointSlice") => const { &[
            NAME,
            text("AddressType", "Kind of the addresses."),
            text("Ports", "Ports of every endpoint."),
            text("Endpoints", "Addresses of the endpoints."),
            AGE,
        ] },
        ("", "Node") => const { &[
            NAME,
            text("Status", "State of the node."),
            text("Roles", "Roles of the node."),
            AGE,
            text("Version", "Version of the node's kubelet."),
            wide("Internal-IP", "Address of the node in the cluster."),
            wide("External-IP", "Address of the node outside of the cluster."),
            wide("OS-Image", "Operating system of the node."),
            wide("Kernel-Version", "Kernel of the node, and its architecture."),
            wide("Container-Runtime", "Container runtime of the node."),
        ] },
        ("", "Event") | ("events.k8s.io", "Event") => const { &[
            text("Last Seen", "Time since it last happened."),
            text("Type", "Normal or Warning."),
            text("Reason", "What happened, in a word."),
            text("Object", "Object that it happened to."),
            wide("Subobject", "Part of the object that it happened to."),
            wide("Source", "Component that reports it."),
            text("Message", "What happened, in a sentence."),
            wide("First Seen", "Time since it first happened."),
            wide("Count", "How often it happened."),
            Column { format: "name", ..wide("Name", NAME.description) },
        ] },
        ("", "Namespace") => const { &[NAME, text("Status", "State of the namespace."), AGE] },
        ("", "Secret") => const { &[NAME, text("Type", "What the data is for."), text("Data", "Number of entries."), AGE] },
        ("", "ConfigMap") => const { &[NAME, text("Data", "Number of entries."), AGE] },
        ("", "ServiceAccount") => NAME_AGE,
        ("", "PersistentVolume") => const { &[
            NAME,
            text("Capacity", "Size of the volume."),
            text("Access Modes", "How the volume can be mounted."),
            text("Reclaim Policy", "What happens to the volume when its claim is gone."),
            text("Status", "State of the volume."),
            text("Claim", "Claim that the volume is bound to."),
            text("StorageClass", "Storage class of the volume."),
            text("VolumeAttributesClass", "Attributes class of the volume."),
            text("Reason", "Why the volume is in its state."),
            AGE,
            wide("VolumeMode", "File system or block device."),
        ] },
        ("", "PersistentVolumeClaim") => const { &[
            NAME,
            text("Status", "State of the claim."),
            text("Volume", "Volume that the claim is bound to."),
            text("Capacity", "Size of that volume."),
            text("Access Modes", "How that volume can be mounted."),
            text("StorageClass", "Storage class of the claim."),
            text("VolumeAttributesClass", "Attributes class of the claim."),
            AGE,
            wide("VolumeMode", "File system or block device."),
        ] },
        ("", "ComponentStatus") => const { &[
            NAME,
            text("Status", "Whether the component is healthy."),
            text("Message", "What the component says."),
            text("Error", "What is wrong with the component."),
        ] },
        ("", "ResourceQuota") => const { &[
            NAME,
            text("Request", "What is used and allowed of requests and object counts."),
            text("Limit", "What is used and allowed of limits."),
            AGE,
        ] },
        ("autoscaling", "HorizontalPodAutoscaler") => const { &[
            NAME,
            text("Reference", "Object that is scaled."),
            text("Targets", "Current and wanted values of the metrics."),
            text("MinPods", "Least number of pods."),
            text("MaxPods", "Most pods."),
            text("Replicas", "Current number of pods."),
            AGE,
        ] },
        ("autoscaling", "Scale") => const { &[
            text("Name", NAME.description),
            int("Desired", "Number of pods wanted."),
            int("Available", "Number of pods that there are."),
            AGE,
        ] },
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => ROLE_BINDINGS,
        ("certificates.k8s.io", "CertificateSigningRequest") => const { &[
            NAME,
            AGE,
            text("SignerName", "Signer that is asked."),
            text("Requestor", "User who asks."),
            text("RequestedDuration", "Life time asked for."),
            text("Condition", "State of the request."),
        ] },
        ("certificates.k8s.io", "ClusterTrustBundle") => const { &[NAME, text("SignerName", "Signer whose roots these are.")] },
        ("coordination.k8s.io", "Lease") => const { &[NAME, text("Holder", "Who holds the lease."), AGE] },
        ("coordination.k8s.io", "LeaseCandidate") => const { &[
            NAME,
            text("LeaseName", "Lease that is wanted."),
            text("BinaryVersion", "Version of the program."),
            text("EmulationVersion", "Version that the program acts as."),
            AGE,
        ] },
        ("storage.k8s.io", "StorageClass") => const { &[
            NAME,
            text("Provisioner", "Who makes the volumes."),
            text("ReclaimPolicy", "What happens to a volume when its claim is gone."),
            text("VolumeBindingMode", "When a claim gets its volume."),
            text("AllowVolumeExpansion", "Whether volumes can grow."),
            AGE,
        ] },
        ("storage.k8s.io", "VolumeAttributesClass") => const { &[NAME, text("DriverName", "CSI driver of the class."), AGE] },
        ("storage.k8s.io", "VolumeAttachment") => const { &[
            NAME,
            Column { format: "name", ..text("Attacher", "CSI driver that attaches.") },
            text("PV", "Volume that is attached."),
            text("Node", "Node that it is attached to."),
            flag("Attached", "Whether it is attached."),
            AGE,
        ] },
        ("storage.k8s.io", "CSINode") => const { &[NAME, int("Drivers", "Number of CSI drivers on the node."), AGE] },
        ("storage.k8s.io", "CSIDriver") => const { &[
            NAME,
            flag("AttachRequired", "Whether volumes must be attached first."),
            flag("PodInfoOnMount", "Whether the driver is told about the pod."),
            flag("StorageCapacity", "Whether the driver reports free capacity."),
            text("TokenRequests", "Audiences of the tokens that the driver gets."),
            flag("RequiresRepublish", "Whether volumes are published again and again."),
            text("Modes", "Life cycles of the driver's volumes."),
            AGE,
        ] },
        ("storage.k8s.io", "CSIStorageCapacity") => {
            const { &[NAME, text("StorageClassName", "Storage class that it is about."), text("Capacity", "Free capacity.")] }
        }
        ("scheduling.k8s.io", "PriorityClass") => const { &[
            NAME,
            int("Value", "Priority of the class's pods."),
            flag("Global-Default", "Whether pods without a class get this one."),
            AGE,
            text("PreemptionPolicy", "Whether pods of the class may push out others."),
        ] },
        ("apiregistration.k8s.io", "APIService") => const { &[
            NAME,
            text("Service", "The service behind which another server answers for the group, or Local."),
            text("Available", "Whether it answers."),
            AGE,
        ] },
        ("node.k8s.io", "RuntimeClass") => const { &[NAME, text("Handler", "Runtime configuration on the node."), AGE] },
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => WEBHOOKS,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => const { &[
            NAME,
            int("Validations", "Number of rules."),
            text("ParamKind", "Kind of the policy's parameters."),
            AGE,
        ] },
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => {
            const { &[NAME, int("Mutations", "Number of rules."), text("ParamKind", "Kind of the policy's parameters."), AGE] }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding") => POLICY_BINDING,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => const { &[
            NAME,
            text("PriorityLevel", "Priority level of the requests."),
            text("MatchingPrecedence", "Schemas with lower numbers are tried first."),
            text("DistinguisherMethod", "What makes requests one flow."),
            AGE,
            text("MissingPL", "Whether the priority level does not exist."),
        ] },
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => const { &[
            NAME,
            text("Type", "Limited or Exempt."),
            text("NominalConcurrencyShares", "Share of the server's requests at a time."),
            text("Queues", "Number of queues."),
            text("HandSize", "Number of queues that a flow may use."),
            text("QueueLengthLimit", "Most requests waiting in a queue."),
            AGE,
        ] },
        ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => NAME_AGE,
        ("resource.k8s.io", "ResourceClaim") => const { &[NAME, text("State", "State of the claim."), AGE] },
        ("resource.k8s.io", "ResourceSlice") => const { &[
            NAME,
            text("Node", "Node that has the devices."),
            text("Driver", "Driver of the devices."),
            text("Pool", "Pool that the devices belong to."),
            AGE,
        ] },
        ("", "Status") => const { &[
            text("Status", "Success or Failure."),
            text("Reason", "Why it failed, in a word."),
            text("Message", "Why it failed, in a sentence."),
        ] },
        ("metrics.k8s.io", "NodeMetrics" | "PodMetrics") => const { &[
            NAME,
            text("cpu", "Processor time that is used."),
            text("memory", "Memory that is used."),
            text("Window", "Time over which the use of the processor is averaged."),
        ] },
        _ => DEFAULT,
    }
}
