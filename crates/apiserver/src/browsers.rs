//! What browsers are told: which pages may ask this server (CORS), and that it is to be reached over TLS alone (HSTS).
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use regex::RegexSet;

/// Why browsers cannot be told so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Invalid CORS allowed origin, --cors-allowed-origins flag was set to {0} - {1}")]
    Origins(String, regex::Error),
    #[error("empty value in strict-transport-security-directives")]
    Empty,
    #[error("--strict-transport-security-directives invalid, allowed values: max-age=expireTime, includeSubDomains, preload. see https://tools.ietf.org/html/rfc6797#section-6.1 for more information")]
    Directive,
}

/// The answer to pages of allowed origins, beside the origin itself.
const ALLOWED: [(HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE, PATCH"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since"),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
    (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
];

pub(crate) struct Browsers {
    origins: RegexSet,
    transport: Option<HeaderValue>,
}

impl Browsers {
    pub fn new(origins: &[String], directives: &[String]) -> Result<Browsers, Error> {
        let wrong = |directive: &String| match directive.trim() {
            "" => Some(Error::Empty),
            "includeSubDomains" | "preload" => None,
            other => (!matches!(other.split_once('='), Some(("max-age", _)))).then_some(Error::Directive),
        };
        if let Some(error) = directives.iter().find_map(wrong) {
            return Err(error);
        }
        let transport = (!directives.is_empty()).then(|| HeaderValue::from_str(&directives.join("; ")).map_err(|_| Error::Directive)).transpose()?;
        let origins = RegexSet::new(origins).map_err(|error| Error::Origins(origins.join(","), error))?;
        Ok(Browsers { origins, transport })
    }

    /// The origin of the page that asks, if it may.
    pub fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN).filter(|_| !self.origins.is_empty())?;
        origin.to_str().is_ok_and(|text| self.origins.is_match(text)).then(|| origin.clone())
    }

    /// Whether the browser only asks whether the page may.
    pub fn only_asks(method: &Method, allowed: Option<&HeaderValue>) -> bool {
        allowed.is_some() && method == Method::OPTIONS
    }

    /// Puts what browsers are told into an answer.
    pub fn tell(&self, allowed: Option<HeaderValue>, answer: &mut HeaderMap) {
        if let Some(transport) = &self.transport {
            answer.entry(header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| transport.clone());
        }
        if let Some(origin) = allowed {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.extend(ALLOWED.map(|(name, value)| (name, HeaderValue::from_static(value))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn origins_are_asked_and_directives_sent() {
        let browsers = Browsers::new(&texts(&["^https://a\\.example$"]), &texts(&["max-age=60", "preload"])).unwrap();
        let mut headers = HeaderMap::new();
        assert_eq!(browsers.allowed(&headers), None);
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://b.example"));
        assert_eq!(browsers.allowed(&headers), None);
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://a.example"));
        let allowed = browsers.allowed(&headers);
        assert!(Browsers::only_asks(&Method::OPTIONS, allowed.as_ref()) && !Browsers::only_asks(&Method::GET, allowed.as_ref()));
        let mut answer = HeaderMap::new();
        browsers.tell(allowed, &mut answer);
        assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://a.example");
        assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(answer[header::STRICT_TRANSPORT_SECURITY], "max-age=60; preload");
        let mut answer = HeaderMap::new();
        Browsers::new(&[], &[]).unwrap().tell(None, &mut answer);
        assert!(answer.is_empty());
    }

    #[test]
    fn mistakes_are_told() {
        let wrong = |origins: &[&str], directives: &[&str]| Browsers::new(&texts(origins), &texts(directives)).err().unwrap().to_string();
        assert!(wrong(&["("], &[]).starts_with("Invalid CORS allowed origin, --cors-allowed-origins flag was set to ( - "));
        assert!(wrong(&[], &["max-age"]).starts_with("--strict-transport-security-directives invalid, allowed values: "));
        assert_eq!(wrong(&[], &[""]), "empty value in strict-transport-security-directives");
    }
}
