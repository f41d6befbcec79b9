//! gRPC messages of the CRI and of etcd as prost structs, without code generation at build, and a
//! small gRPC client. No logic.
#![forbid(unsafe_code)]

pub mod cri;
pub mod etcd;
pub mod grpc;

/// Encoding and decoding of all of them.
pub use prost::Message;

#[cfg(test)]
mod tests {
    use prost::Message;

    use crate::cri::*;

    /// Bytes as Go's encoder writes them: field 2 of the request (length-delimited) holds the
    /// metadata in field 1, the tty flag in 14 and the linux part in 15.
    #[test]
    fn field_numbers_are_those_of_the_wire() {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "c".into(), attempt: 2 }),
            tty: true,
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
                security_context: None,
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest { pod_sandbox_id: "s".into(), config: Some(config), sandbox_config: None };
        let expected: &[u8] = &[
            0x0a, 1, b's', 0x12, 15, 0x0a, 5, 0x0a, 1, b'c', 0x10, 2, 0x70, 1, 0x7a, 4, 0x0a, 2, 0x18, 2,
        ];
        assert_eq!(request.encode_to_vec(), expected);
        assert_eq!(CreateContainerRequest::decode(expected).unwrap(), request);
    }

    #[test]
    fn credentials_do_not_reach_logs() {
        let auth = AuthConfig { username: "u".into(), password: "hush".into(), ..Default::default() };
        assert!(!format!("{auth:?}").contains("hush"));
    }
}
