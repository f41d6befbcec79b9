//! How the end of a command is told to the client, on the error stream.

use serde_json::{Value, json};

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecStatus {
    /// It ended with exit code 0 (attach: the container's streams ended).
    Success,
    /// It ended with another exit code.
    ExitCode(i32),
    /// It could not be run or waited for; the text says why.
    Error(String),
}

impl ExecStatus {
    /// The `metav1.Status` of protocols v4 and v5.
    pub fn to_json(&self) -> Value {
        match self {
            ExecStatus::Success => json!({"metadata": {}, "status": "Success"}),
            ExecStatus::ExitCode(0) => ExecStatus::Success.to_json(),
            ExecStatus::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            ExecStatus::Error(cause) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "details": {"causes": [{"message": cause}]},
                "code": 500,
            }),
        }
    }

    /// The text of protocols before v4, which tell failures only; empty for success.
    pub fn message(&self) -> String {
        match self {
            ExecStatus::Success | ExecStatus::ExitCode(0) => String::new(),
            ExecStatus::ExitCode(code) => {
                format!(
                    "command terminated with non-zero exit code: command terminated with exit code {code}"
                )
            }
            ExecStatus::Error(cause) => format!("Internal error occurred: {cause}"),
        }
    }

    /// Reads the status that a server of protocol v4 or v5 sent. Nothing at all is an error: a server
    /// that ends well says so.
    pub fn from_json(bytes: &[u8]) -> Self {
        let Ok(status) = serde_json::from_slice::<Value>(bytes) else {
            return ExecStatus::Error(format!(
                "error stream protocol error in {:?}",
                String::from_utf8_lossy(bytes)
            ));
        };
        if status["status"] == "Success" {
            return ExecStatus::Success;
        }
        let causes = status["details"]["causes"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let code = causes.iter().find(|cause| cause["reason"] == "ExitCode");
        match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
            Some(code) if status["reason"] == "NonZeroExitCode" => ExecStatus::ExitCode(code),
            _ => ExecStatus::Error(status["message"].as_str().unwrap_or_default().to_owned()),
        }
    }
}
