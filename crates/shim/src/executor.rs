//! The last step of a container's process: from libcontainer's set-up to the payload.
//!
//! It differs from libcontainer's own by Go's words for an executable that is missing (users know
//! them), by keeping the order of the environment, and by needing no PATH in it.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes `process.args`.
#[derive(Clone)]
pub struct Payload;

/// Finds a program as Go's `exec.LookPath` does, or says in its words why not.
fn find(program: &str, path: &str) -> Result<PathBuf, String> {
    let usable = |candidate: &Path| {
        let meta = candidate.metadata()?;
        if meta.is_dir() {
            return Err(std::io::Error::from_raw_os_error(libc::EISDIR));
        }
        match rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK) {
            Ok(()) => Ok(()),
            Err(errno) => Err(std::io::Error::from(errno)),
        }
    };
    if program.contains('/') {
        let why = match usable(Path::new(program)) {
            Ok(()) => return Ok(program.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("stat {program}: no such file or directory"),
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => "is a directory".to_owned(),
            Err(_) => "permission denied".to_owned(),
        };
        return Err(format!("exec: {program:?}: {why}"));
    }
    let mut dirs = path.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }));
    let found = dirs.find_map(|dir| Some(dir.join(program)).filter(|candidate| usable(candidate).is_ok()));
    found.ok_or_else(|| format!("exec: {program:?}: executable file not found in $PATH"))
}

fn resolve(spec: &Spec) -> Result<(PathBuf, Vec<String>, Vec<String>), String> {
    let process = spec.process().as_ref().ok_or("no process to execute")?;
    let args = process.args().clone().unwrap_or_default();
    let env = process.env().clone().unwrap_or_default();
    let program = args.first().ok_or("no command specified")?;
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    Ok((find(program, path)?, args, env))
}

impl Executor for Payload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        resolve(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // libcontainer has looked up the user's home; everything else comes from the specification.
        if let Some(home) = envs.get("HOME") {
            // SAFETY: this process has one thread.
            unsafe { std::env::set_var("HOME", home) };
        }
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (program, args, mut env) = resolve(spec).map_err(ExecutorError::Other)?;
        if !env.iter().any(|e| e.starts_with("HOME=")) {
            env.push(format!("HOME={}", std::env::var("HOME").unwrap_or_else(|_| "/".into())));
        }
        let c = |text: &[u8]| CString::new(text).map_err(|_| ExecutorError::InvalidArg);
        let path = c(program.as_os_str().as_bytes())?;
        let args = args.iter().map(|a| c(a.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let env = env.iter().map(|e| c(e.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let Err(errno) = nix::unistd::execve(&path, &args, &env);
        Err(ExecutorError::Other(format!("exec {}: {}", program.display(), errno.desc().to_lowercase())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_missed_in_known_words() {
        assert_eq!(find("sh", "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("nope", "/bin").unwrap_err(), "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(find("/nope", "/bin").unwrap_err(), "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(find("/etc", "").unwrap_err(), "exec: \"/etc\": is a directory");
        let plain = tempfile::NamedTempFile::new().unwrap();
        let name = plain.path().to_str().unwrap();
        assert_eq!(find(name, "").unwrap_err(), format!("exec: {name:?}: permission denied"));
    }
}
