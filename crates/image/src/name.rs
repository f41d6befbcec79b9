//! Names of images: `[registry/]repository[:tag][@digest]`.

use std::fmt;

use oci_client::Reference;

use crate::Error;

/// A normalised name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub(crate) reference: Reference,
}

impl Name {
    /// Parses and normalises; no tag and no digest mean `latest`.
    pub fn parse(name: &str) -> Result<Name, Error> {
        let invalid = |detail: String| Error::InvalidName { name: name.to_string(), detail };
        let reference = name.parse::<Reference>().map_err(|e| invalid(e.to_string()))?;
        // `Ab/c` is read as a repository of the default registry, which cannot have that name.
        if reference.repository().contains(|c: char| c.is_ascii_uppercase()) {
            return Err(invalid("repository name must be lowercase".into()));
        }
        Ok(Name { reference })
    }

    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// `registry/repository`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.reference.registry(), self.reference.repository())
    }

    /// The digest, when the name has one.
    pub fn digest(&self) -> Option<&str> {
        self.reference.digest()
    }

    /// `registry/repository:tag`, when the name has a tag (a digest wins over a tag).
    pub fn tagged(&self) -> Option<String> {
        match (self.digest(), self.reference.tag()) {
            (None, Some(tag)) => Some(format!("{}:{tag}", self.repository())),
            _ => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository())?;
        match (self.digest(), self.reference.tag()) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

/// The full form of a name.
pub fn normalize(name: &str) -> Result<String, Error> {
    Ok(Name::parse(name)?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expect: &str) {
        assert_eq!(normalize(name).unwrap(), expect, "{name}");
    }

    #[test]
    fn short_names_are_completed() {
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("me/app", "docker.io/me/app:latest");
        check("localhost:5000/app", "localhost:5000/app:latest");
        check("127.0.0.1:5000/a/b:v2", "127.0.0.1:5000/a/b:v2");
        check("knarr.local/echo", "knarr.local/echo:latest");
        let digest = format!("sha256:{}", "ab".repeat(32));
        check(&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}"));
        check(&format!("nginx:1@{digest}"), &format!("docker.io/library/nginx@{digest}"));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(normalize("UPPER"), Err(Error::InvalidName { .. })));
        assert!(matches!(normalize("Upper/a"), Err(Error::InvalidName { .. })));
        assert!(matches!(normalize("a b"), Err(Error::InvalidName { .. })));
        assert!(matches!(normalize(""), Err(Error::InvalidName { .. })));
    }
}
