//! The AuthenticationConfiguration: whose tokens are taken, and who their holders are. What can be wrong with it is said
//! in upstream's words.

use api::field::{FieldError, Path};
use api::names;
use cel::Program;
use cel::authentication::{compile_claims, compile_user};
use serde_json::Value;

use crate::config_file::{self, Shape};
use crate::util::{flag, items, text, texts};

const MAPPING: Shape = Shape::Object(&[("claim", Shape::Text), ("prefix", Shape::Text), ("expression", Shape::Text)]);
const FIELDS: &[(&str, Shape)] = &[
    (
        "jwt",
        Shape::List(&Shape::Object(&[
            (
                "issuer",
                Shape::Object(&[
                    ("url", Shape::Text),
                    ("discoveryURL", Shape::Text),
                    ("certificateAuthority", Shape::Text),
                    ("audiences", Shape::List(&Shape::Text)),
                    ("audienceMatchPolicy", Shape::Text),
                    ("egressSelectorType", Shape::Text),
                ]),
            ),
            (
                "claimValidationRules",
                Shape::List(&Shape::Object(&[("claim", Shape::Text), ("requiredValue", Shape::Text), ("expression", Shape::Text), ("message", Shape::Text)])),
            ),
            (
                "claimMappings",
                Shape::Object(&[
                    ("username", MAPPING),
                    ("groups", MAPPING),
                    ("uid", Shape::Object(&[("claim", Shape::Text), ("expression", Shape::Text)])),
                    ("extra", Shape::List(&Shape::Object(&[("key", Shape::Text), ("valueExpression", Shape::Text)]))),
                ]),
            ),
            ("userValidationRules", Shape::List(&Shape::Object(&[("expression", Shape::Text), ("message", Shape::Text)]))),
        ])),
    ),
    ("anonymous", Shape::Object(&[("enabled", Shape::Flag), ("conditions", Shape::List(&Shape::Object(&[("path", Shape::Text)])))])),
];
/// Most issuers.
const MOST: usize = 64;

/// Who is known by the tokens of other issuers, and whether anybody need not be known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthenticationConfig {
    pub jwt: Vec<JwtConfig>,
    pub anonymous: Option<AnonymousConfig>,
    /// The ways of signing that are taken.
    pub algorithms: Vec<String>,
}

/// Whether requests without credentials are served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnonymousConfig {
    pub enabled: bool,
    /// The only paths at which they are; all, if none is given.
    pub paths: Vec<String>,
}

/// An issuer, and what its tokens mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JwtConfig {
    pub url: String,
    /// Where its discovery document is, if not at its usual place below the URL.
    pub discovery_url: String,
    /// PEM bundle; the machine's, if it is empty.
    pub certificate_authority: String,
    pub audiences: Vec<String>,
    pub audience_match_policy: String,
    pub egress_selector_type: String,
    pub claim_rules: Vec<ClaimRule>,
    pub username: Mapping,
    pub groups: Mapping,
    pub uid: Mapping,
    /// Keys with the expressions of their values.
    pub extra: Vec<(String, String)>,
    /// Expressions with their messages.
    pub user_rules: Vec<(String, String)>,
}

/// What a token has to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

/// Where a part of the user comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mapping {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// Not of its form.
    #[error("{0}")]
    Load(String),
    /// What is wrong with it.
    #[error("invalid authentication configuration: {}", api::field::aggregate(.0.iter().map(ToString::to_string)))]
    Invalid(Vec<FieldError>),
}

impl AuthenticationConfig {
    /// Reads a file's text, YAML or JSON.
    pub fn from_text(file: &str) -> Result<AuthenticationConfig, AuthenticationError> {
        if file.is_empty() {
            return Err(AuthenticationError::Load("empty config data".into()));
        }
        let value = config_file::load(file, "AuthenticationConfiguration", FIELDS).map_err(AuthenticationError::Load)?;
        let anonymous = value.get("anonymous").filter(|a| a.is_object()).map(|a| AnonymousConfig {
            enabled: flag(a, "/enabled"),
            paths: items(a, "/conditions").map(|c| text(c, "/path").to_owned()).collect(),
        });
        let algorithms = pki::jwks::ALGORITHMS.map(str::to_owned).to_vec();
        Ok(AuthenticationConfig { jwt: items(&value, "/jwt").map(JwtConfig::of).collect(), anonymous, algorithms })
    }
}

impl JwtConfig {
    fn of(jwt: &Value) -> JwtConfig {
        let word = |pointer: &str| text(jwt, pointer).to_owned();
        let mapping = |name: &str| {
            let at = |field: &str| format!("/claimMappings/{name}/{field}");
            let prefix = jwt.pointer(&at("prefix")).and_then(Value::as_str).map(str::to_owned);
            Mapping { claim: word(&at("claim")), prefix, expression: word(&at("expression")) }
        };
        let rule = |r: &Value| ClaimRule {
            claim: text(r, "/claim").to_owned(),
            required_value: text(r, "/requiredValue").to_owned(),
            expression: text(r, "/expression").to_owned(),
            message: text(r, "/message").to_owned(),
        };
        let pair = |v: &Value, a: &str, b: &str| (text(v, a).to_owned(), text(v, b).to_owned());
        JwtConfig {
            url: word("/issuer/url"),
            discovery_url: word("/issuer/discoveryURL"),
            certificate_authority: word("/issuer/certificateAuthority"),
            audiences: texts(jwt, "/issuer/audiences").map(str::to_owned).collect(),
            audience_match_policy: word("/issuer/audienceMatchPolicy"),
            egress_selector_type: word("/issuer/egressSelectorType"),
            claim_rules: items(jwt, "/claimValidationRules").map(rule).collect(),
            username: mapping("username"),
            groups: mapping("groups"),
            uid: mapping("uid"),
            extra: items(jwt, "/claimMappings/extra").map(|e| pair(e, "/key", "/valueExpression")).collect(),
            user_rules: items(jwt, "/userValidationRules").map(|r| pair(r, "/expression", "/message")).collect(),
        }
    }
}

/// An expression that compiled.
#[derive(Debug)]
pub(super) struct Expression {
    pub text: String,
    pub program: Program,
}

/// The expressions of an issuer.
#[derive(Debug, Default)]
pub(super) struct Expressions {
    pub username: Option<Expression>,
    pub groups: Option<Expression>,
    pub uid: Option<Expression>,
    pub extra: Vec<(String, Expression)>,
    /// With their messages.
    pub claim_rules: Vec<(Expression, String)>,
    pub user_rules: Vec<(Expression, String)>,
}

/// Checks a configuration, and compiles its expressions. `taken` are issuers that others must not be.
pub(super) fn compile(config: &AuthenticationConfig, taken: &[String]) -> Result<Vec<Expressions>, Vec<FieldError>> {
    let root = Path::new("jwt");
    let mut errors = Vec::new();
    let mut all = Vec::new();
    if config.jwt.len() > MOST {
        return Err(vec![FieldError::too_many(&root, config.jwt.len(), MOST)]);
    }
    let (mut urls, mut discoveries) = (Vec::new(), Vec::new());
    for (i, jwt) in config.jwt.iter().enumerate() {
        let at = root.index(i);
        all.push(issuer_and_rules(jwt, &at, taken, &mut errors));
        let issuer = at.child("issuer");
        if urls.contains(&&jwt.url) {
            errors.push(FieldError::duplicate(&issuer.child("url"), jwt.url.as_str()));
        }
        urls.push(&jwt.url);
        if !jwt.discovery_url.is_empty() {
            if discoveries.contains(&&jwt.discovery_url) {
                errors.push(FieldError::duplicate(&issuer.child("discoveryURL"), jwt.discovery_url.as_str()));
            }
            discoveries.push(&jwt.discovery_url);
        }
    }
    if let Some(anonymous) = config.anonymous.as_ref().filter(|a| !a.enabled && !a.paths.is_empty()) {
        let conditions: Vec<Value> = anonymous.paths.iter().map(|p| serde_json::json!({"path": p})).collect();
        errors.push(FieldError::invalid(&Path::new("anonymous").child("conditions"), conditions, "enabled should be set to true when conditions are defined"));
    }
    if errors.is_empty() { Ok(all) } else { Err(errors) }
}

fn issuer_and_rules(jwt: &JwtConfig, at: &Path, taken: &[String], errors: &mut Vec<FieldError>) -> Expressions {
    let issuer = at.child("issuer");
    if jwt.url.is_empty() {
        errors.push(FieldError::required(&issuer.child("url"), ""));
    } else {
        url(&jwt.url, taken, &issuer.child("url"), errors);
    }
    if !jwt.discovery_url.is_empty() {
        let at = issuer.child("discoveryURL");
        if !jwt.url.is_empty() && jwt.url.trim_end_matches('/') == jwt.discovery_url.trim_end_matches('/') {
            errors.push(FieldError::invalid(&at, jwt.discovery_url.as_str(), "discoveryURL must be different from URL"));
        }
        url(&jwt.discovery_url, &[], &at, errors);
    }
    audiences(jwt, &issuer, errors);
    let ca = &jwt.certificate_authority;
    if !ca.is_empty() && pki::Roots::from_pem(ca).is_err() {
        errors.push(FieldError::invalid(&issuer.child("certificateAuthority"), "<omitted>", "data does not contain any valid RSA or ECDSA certificates"));
    }
    let egress = &jwt.egress_selector_type;
    if !egress.is_empty() {
        let why = match egress.as_str() {
            "controlplane" | "cluster" => format!("oidc: egress lookup required with egress selector type {}", api::field::go_quote(egress)),
            _ => "egress selector must be either controlplane or cluster".into(),
        };
        errors.push(FieldError::invalid(&issuer.child("egressSelectorType"), egress.as_str(), why));
    }
    let mut expressions = Expressions::default();
    claim_rules(jwt, &at.child("claimValidationRules"), &mut expressions, errors);
    mappings(jwt, &at.child("claimMappings"), &mut expressions, errors);
    user_rules(jwt, &at.child("userValidationRules"), &mut expressions, errors);
    expressions
}

fn url(text: &str, taken: &[String], at: &Path, errors: &mut Vec<FieldError>) {
    let mut wrong = |why: String| errors.push(FieldError::invalid(at, text, why));
    if taken.iter().any(|t| t == text) {
        let mut sorted = taken.to_vec();
        sorted.sort();
        wrong(format!("URL must not overlap with disallowed issuers: [{}]", sorted.join(" ")));
    }
    if text.chars().any(|c| c.is_ascii_control()) {
        return wrong(format!("parse {}: net/url: invalid control character in URL", api::field::go_quote(text)));
    }
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    if !scheme.eq_ignore_ascii_case("https") {
        wrong("URL scheme must be https".into());
    }
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        wrong("URL must not contain a username or password".into());
    }
    if !query.is_empty() {
        wrong("URL must not contain a query".into());
    }
    if !fragment.is_empty() {
        wrong("URL must not contain a fragment".into());
    }
}

fn audiences(jwt: &JwtConfig, issuer: &Path, errors: &mut Vec<FieldError>) {
    let at = issuer.child("audiences");
    if jwt.audiences.is_empty() {
        return errors.push(FieldError::required(&at, format!("at least one {at} is required")));
    }
    for (i, audience) in jwt.audiences.iter().enumerate() {
        if audience.is_empty() {
            errors.push(FieldError::required(&at.index(i), ""));
        }
        if jwt.audiences[..i].contains(audience) {
            errors.push(FieldError::duplicate(&at.index(i), audience.as_str()));
        }
    }
    let (policy, at) = (jwt.audience_match_policy.as_str(), issuer.child("audienceMatchPolicy"));
    if jwt.audiences.len() > 1 && policy != "MatchAny" {
        errors.push(FieldError::invalid(&at, policy, "audienceMatchPolicy must be MatchAny for multiple audiences"));
    }
    if jwt.audiences.len() == 1 && !matches!(policy, "" | "MatchAny") {
        errors.push(FieldError::invalid(&at, policy, "audienceMatchPolicy must be empty or MatchAny for single audience"));
    }
}

/// Keeps what compiled, and says why when it did not.
fn compiled(result: Result<Program, String>, text: &str, at: &Path, errors: &mut Vec<FieldError>) -> Option<Expression> {
    match result {
        Ok(program) => Some(Expression { text: text.to_owned(), program }),
        Err(why) => {
            errors.push(FieldError::invalid(at, text, why));
            None
        }
    }
}

fn claim_rules(jwt: &JwtConfig, at: &Path, expressions: &mut Expressions, errors: &mut Vec<FieldError>) {
    for (i, rule) in jwt.claim_rules.iter().enumerate() {
        let at = at.index(i);
        let before = &jwt.claim_rules[..i];
        match (rule.claim.as_str(), rule.expression.as_str()) {
            ("", "") => errors.push(FieldError::required(&at, "claim or expression is required")),
            (claim, "") => {
                if !rule.message.is_empty() {
                    errors.push(FieldError::invalid(&at.child("message"), rule.message.as_str(), "may not be specified when claim is set"));
                }
                if before.iter().any(|b| b.expression.is_empty() && b.claim == claim) {
                    errors.push(FieldError::duplicate(&at.child("claim"), claim));
                }
            }
            ("", expression) => {
                if !rule.required_value.is_empty() {
                    errors.push(FieldError::invalid(&at.child("requiredValue"), rule.required_value.as_str(), "may not be specified when expression is set"));
                }
                let at = at.child("expression");
                if before.iter().any(|b| b.claim.is_empty() && b.expression == expression) {
                    errors.push(FieldError::duplicate(&at, expression));
                    continue;
                }
                let program = compiled(compile_claims(expression, true), expression, &at, errors);
                expressions.claim_rules.extend(program.map(|p| (p, rule.message.clone())));
            }
            (claim, _) => errors.push(FieldError::invalid(&at, claim, "claim and expression can't both be set")),
        }
    }
}

fn mappings(jwt: &JwtConfig, at: &Path, expressions: &mut Expressions, errors: &mut Vec<FieldError>) {
    expressions.username = mapping(&jwt.username, &at.child("username"), true, errors);
    expressions.groups = mapping(&jwt.groups, &at.child("groups"), false, errors);
    let uid = at.child("uid");
    match (jwt.uid.claim.as_str(), jwt.uid.expression.as_str()) {
        (_, "") => {}
        ("", expression) => expressions.uid = compiled(compile_claims(expression, false), expression, &uid.child("expression"), errors),
        _ => errors.push(FieldError::invalid(&uid, "", "claim and expression can't both be set")),
    }
    for (i, (key, expression)) in jwt.extra.iter().enumerate() {
        let at = at.child("extra").index(i);
        extra_key(key, &at.child("key"), errors);
        if jwt.extra[..i].iter().any(|(k, _)| k == key) {
            errors.push(FieldError::duplicate(&at.child("key"), key.as_str()));
            continue;
        }
        let at = at.child("valueExpression");
        if expression.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let program = compiled(compile_claims(expression, false), expression, &at, errors);
        expressions.extra.extend(program.map(|p| (key.clone(), p)));
    }
    // An address of which nobody knows whether it is theirs must not become a user's name.
    let names = |e: &Expression, field: &str| e.program.fields_of("claims").contains(&field);
    let verified = |e: &Expression| names(e, "email_verified");
    let looked_at = expressions.username.iter().any(verified)
        || expressions.extra.iter().any(|(_, e)| verified(e))
        || expressions.claim_rules.iter().any(|(e, _)| verified(e));
    if expressions.username.as_ref().is_some_and(|e| names(e, "email")) && !looked_at {
        errors.push(FieldError::invalid(
            &at.child("username").child("expression"),
            jwt.username.expression.as_str(),
            "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
        ));
    }
}

fn mapping(mapping: &Mapping, at: &Path, required: bool, errors: &mut Vec<FieldError>) -> Option<Expression> {
    match (mapping.claim.as_str(), mapping.expression.as_str()) {
        ("", "") => {
            if required {
                errors.push(FieldError::required(at, "claim or expression is required"));
            }
            None
        }
        ("", expression) => {
            if let Some(prefix) = &mapping.prefix {
                errors.push(FieldError::invalid(&at.child("prefix"), prefix.as_str(), "may not be specified when expression is set"));
            }
            compiled(compile_claims(expression, false), expression, &at.child("expression"), errors)
        }
        (_, "") => {
            if mapping.prefix.is_none() {
                errors.push(FieldError::required(&at.child("prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing"));
            }
            None
        }
        _ => {
            errors.push(FieldError::invalid(at, "", "claim and expression can't both be set"));
            None
        }
    }
}

fn extra_key(key: &str, at: &Path, errors: &mut Vec<FieldError>) {
    if key.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        errors.extend(names::domain_prefixed_path(key).into_iter().map(|(part, why)| FieldError::invalid(at, part, why)));
    }
    if key != key.to_lowercase() {
        errors.push(FieldError::invalid(at, key, "must be lowercase"));
    }
    let host = key.split_once('/').map_or("", |(host, _)| host);
    if ["kubernetes.io", "k8s.io"].iter().any(|d| host == *d || host.strip_suffix(d).is_some_and(|h| h.ends_with('.'))) {
        errors.push(FieldError::invalid(at, key, "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"));
    }
}

fn user_rules(jwt: &JwtConfig, at: &Path, expressions: &mut Expressions, errors: &mut Vec<FieldError>) {
    for (i, (expression, message)) in jwt.user_rules.iter().enumerate() {
        let at = at.index(i).child("expression");
        if expression.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if jwt.user_rules[..i].iter().any(|(e, _)| e == expression) {
            errors.push(FieldError::duplicate(&at, expression.as_str()));
        } else {
            let program = compiled(compile_user(expression), expression, &at, errors);
            expressions.user_rules.extend(program.map(|p| (p, message.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(jwt: &str) -> Vec<String> {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{jwt}");
        let config = AuthenticationConfig::from_text(&text).expect("a configuration");
        compile(&config, &["https://own.example.com".into()]).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    /// What is wrong with an issuer of which this much is as it should be.
    fn with(more: &str) -> Vec<String> {
        wrong(&format!("jwt: [{{issuer: {{url: 'https://a.example.com', audiences: [a]}}, claimMappings: {{username: {{claim: sub, prefix: ''}}}}, {more}}}]"))
    }

    fn mapped(mappings: &str) -> Vec<String> {
        wrong(&format!("jwt: [{{issuer: {{url: 'https://a.example.com', audiences: [a]}}, claimMappings: {{{mappings}}}}}]"))
    }

    fn issued(issuer: &str) -> Vec<String> {
        wrong(&format!("jwt: [{{issuer: {{{issuer}}}, claimMappings: {{username: {{claim: sub, prefix: ''}}}}}}]"))
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn issuers_are_checked() {
        assert_eq!(wrong("jwt: []"), NONE);
        assert_eq!(issued("url: 'https://a.example.com/x', audiences: [a, b], audienceMatchPolicy: MatchAny, discoveryURL: 'https://b.example.com'"), NONE);
        let check = |issuer: &str, expected: &[&str]| assert_eq!(issued(issuer), expected, "{issuer}");
        check("audiences: [a]", &["jwt[0].issuer.url: Required value"]);
        check("url: 'http://u:p@a.example.com?q=1#f', audiences: [a]", &[
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a.example.com?q=1#f\": URL scheme must be https",
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a.example.com?q=1#f\": URL must not contain a username or password",
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a.example.com?q=1#f\": URL must not contain a query",
            "jwt[0].issuer.url: Invalid value: \"http://u:p@a.example.com?q=1#f\": URL must not contain a fragment",
        ]);
        check("url: 'https://own.example.com', audiences: [a]", &["jwt[0].issuer.url: Invalid value: \"https://own.example.com\": URL must not overlap with disallowed issuers: [https://own.example.com]"]);
        check("url: 'https://a.example.com', discoveryURL: 'https://a.example.com/', audiences: [a]", &["jwt[0].issuer.discoveryURL: Invalid value: \"https://a.example.com/\": discoveryURL must be different from URL"]);
        check("url: 'https://a.example.com'", &["jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required"]);
        check("url: 'https://a.example.com', audiences: [a, '', a]", &[
            "jwt[0].issuer.audiences[1]: Required value",
            "jwt[0].issuer.audiences[2]: Duplicate value: \"a\"",
            "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences",
        ]);
        check("url: 'https://a.example.com', audiences: [a], audienceMatchPolicy: All", &["jwt[0].issuer.audienceMatchPolicy: Invalid value: \"All\": audienceMatchPolicy must be empty or MatchAny for single audience"]);
        check("url: 'https://a.example.com', audiences: [a], certificateAuthority: none", &["jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\": data does not contain any valid RSA or ECDSA certificates"]);
        check("url: 'https://a.example.com', audiences: [a], egressSelectorType: etcd", &["jwt[0].issuer.egressSelectorType: Invalid value: \"etcd\": egress selector must be either controlplane or cluster"]);
        let one = "{issuer: {url: 'https://a.example.com', discoveryURL: 'https://d.example.com', audiences: [a]}, claimMappings: {username: {claim: sub, prefix: ''}}}";
        assert_eq!(wrong(&format!("jwt: [{one}, {one}]")), ["jwt[1].issuer.url: Duplicate value: \"https://a.example.com\"", "jwt[1].issuer.discoveryURL: Duplicate value: \"https://d.example.com\""]);
        assert_eq!(wrong("anonymous: {enabled: true, conditions: [{path: /livez}]}"), NONE);
        assert_eq!(wrong("anonymous: {enabled: false, conditions: [{path: /livez}]}").len(), 1);
    }

    #[test]
    fn rules_are_checked() {
        assert_eq!(with("claimValidationRules: [{claim: hd, requiredValue: x}, {expression: 'claims.a == 1', message: m}], userValidationRules: [{expression: 'user.uid != \"\"'}]"), NONE);
        assert_eq!(with("claimValidationRules: [{}, {claim: a, expression: b}, {claim: a, message: m}, {claim: a}, {expression: 'true', requiredValue: x}, {expression: 'true'}, {expression: claims.x}]"), [
            "jwt[0].claimValidationRules[0]: Required value: claim or expression is required",
            "jwt[0].claimValidationRules[1]: Invalid value: \"a\": claim and expression can't both be set",
            "jwt[0].claimValidationRules[2].message: Invalid value: \"m\": may not be specified when claim is set",
            "jwt[0].claimValidationRules[3].claim: Duplicate value: \"a\"",
            "jwt[0].claimValidationRules[4].requiredValue: Invalid value: \"x\": may not be specified when expression is set",
            "jwt[0].claimValidationRules[5].expression: Duplicate value: \"true\"",
            "jwt[0].claimValidationRules[6].expression: Invalid value: \"claims.x\": must evaluate to bool",
        ]);
        assert_eq!(with("userValidationRules: [{}, {expression: 'true'}, {expression: 'true'}, {expression: user.uid}]"), [
            "jwt[0].userValidationRules[0].expression: Required value",
            "jwt[0].userValidationRules[2].expression: Duplicate value: \"true\"",
            "jwt[0].userValidationRules[3].expression: Invalid value: \"user.uid\": must evaluate to bool",
        ]);
    }

    #[test]
    fn mappings_are_checked() {
        assert_eq!(mapped("username: {expression: claims.sub}, groups: {claim: g, prefix: 'x:'}, uid: {claim: u}, extra: [{key: example.org/a, valueExpression: claims.a}]"), NONE);
        assert_eq!(mapped("username: {}"), ["jwt[0].claimMappings.username: Required value: claim or expression is required"]);
        assert_eq!(mapped("username: {claim: sub}, groups: {claim: g, expression: x}"), [
            "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            "jwt[0].claimMappings.groups: Invalid value: \"\": claim and expression can't both be set",
        ]);
        assert_eq!(mapped("username: {expression: claims.sub, prefix: p}, uid: {claim: a, expression: b}"), [
            "jwt[0].claimMappings.username.prefix: Invalid value: \"p\": may not be specified when expression is set",
            "jwt[0].claimMappings.uid: Invalid value: \"\": claim and expression can't both be set",
        ]);
        let keys = mapped("username: {expression: claims.sub}, extra: [{key: '', valueExpression: '1'}, {key: a, valueExpression: '1'}, {key: A.b/c, valueExpression: '1'}, {key: x.k8s.io/a, valueExpression: '1'}, {key: x.y/a}, {key: x.y/a}]");
        assert_eq!(keys[0], "jwt[0].claimMappings.extra[0].key: Required value");
        assert_eq!(keys[1], "jwt[0].claimMappings.extra[1].key: Invalid value: \"a\": must be a domain-prefixed path (such as \"acme.io/foo\")");
        assert!(keys[2].starts_with("jwt[0].claimMappings.extra[2].key: Invalid value: \"A.b\": a lowercase RFC 1123 subdomain"), "{}", keys[2]);
        assert_eq!(keys[3..], [
            "jwt[0].claimMappings.extra[2].key: Invalid value: \"A.b/c\": must be lowercase",
            "jwt[0].claimMappings.extra[3].key: Invalid value: \"x.k8s.io/a\": k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
            "jwt[0].claimMappings.extra[4].valueExpression: Required value",
            "jwt[0].claimMappings.extra[5].key: Duplicate value: \"x.y/a\"",
        ]);
        // an address counts only where somebody looks whether it is verified
        let unverified = mapped("username: {expression: claims.email}");
        assert!(unverified.len() == 1 && unverified[0].contains("claims.email_verified must be used"), "{unverified:?}");
        assert_eq!(mapped("username: {expression: 'claims.?email_verified.orValue(true) ? claims.email : claims.sub'}"), NONE);
        assert_eq!(mapped("username: {expression: claims.email}, extra: [{key: a.b/c, valueExpression: 'string(claims.email_verified)'}]"), NONE);
        assert!(mapped("username: {expression: 'claims.'}")[0].contains("compilation failed: ERROR: <input>:1:8: Syntax error"));
    }
}
