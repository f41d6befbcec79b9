//! `kube-apiserver`'s flags about who is known and who decides: issuers of tokens, webhooks, configurations of both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use registry::{Abac, AnonymousConfig, AuthenticationConfig, AuthorizationConfig, AuthorizationMode, ClaimRule, JwtConfig, Mapping, TokenWebhookConfig, WebhookSettings};

use super::flags::Values;
use super::read;
use crate::follow::Followed;

/// The flags that name an issuer.
const OIDC: [&str; 9] = [
    "oidc-issuer-url",
    "oidc-client-id",
    "oidc-ca-file",
    "oidc-username-claim",
    "oidc-username-prefix",
    "oidc-groups-claim",
    "oidc-groups-prefix",
    "oidc-signing-algs",
    "oidc-required-claim",
];

/// Whose tokens are taken, whether anybody may be nobody, and the file that says so.
pub fn authentication(values: &Values, taken: &[String]) -> Result<(AuthenticationConfig, AnonymousConfig, Option<Followed>)> {
    let oidc = OIDC.iter().any(|flag| values.is_set(flag));
    let mut file = None;
    let config = match values.given("authentication-config") {
        Some(path) => {
            ensure!(!oidc, "authentication-config file and oidc-* flags are mutually exclusive");
            let failed = || format!("failed to load authentication configuration from file {path:?}");
            let followed = Followed::read(Path::new(&path)).with_context(failed)?;
            let config = AuthenticationConfig::from_text(&followed.text).with_context(failed)?;
            file = Some(followed);
            config
        }
        None => issuer(values, oidc)?,
    };
    let anonymous = match &config.anonymous {
        Some(_) if values.is_set("anonymous-auth") => {
            bail!("anonymous: Forbidden: --anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file")
        }
        Some(anonymous) => anonymous.clone(),
        None => AnonymousConfig { enabled: values.bool("anonymous-auth") && !always_allows(values), paths: Vec::new() },
    };
    config.check(taken)?;
    Ok((config, anonymous, file))
}

/// The one issuer that flags can name.
fn issuer(values: &Values, any: bool) -> Result<AuthenticationConfig> {
    let (Some(url), Some(client)) = (values.given("oidc-issuer-url"), values.given("oidc-client-id")) else {
        ensure!(!any, "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set");
        return Ok(AuthenticationConfig::default());
    };
    let claim = values.text("oidc-username-claim");
    let prefix = match values.text("oidc-username-prefix").as_str() {
        // what is no address is told apart by its issuer
        "" if claim != "email" => format!("{url}#"),
        "-" => String::new(),
        prefix => prefix.into(),
    };
    let mut rules = Vec::new();
    for pair in values.all("oidc-required-claim") {
        let (claim, value) = pair.split_once('=').with_context(|| format!("invalid argument {pair:?} for \"--oidc-required-claim\" flag: malformed pair, expect string=string"))?;
        rules.push(ClaimRule { claim: claim.trim().into(), required_value: value.trim().into(), ..ClaimRule::default() });
    }
    let groups = values.given("oidc-groups-claim").map(|claim| Mapping { claim, prefix: Some(values.text("oidc-groups-prefix")), ..Mapping::default() });
    let jwt = JwtConfig {
        url,
        certificate_authority: values.given("oidc-ca-file").map(|path| read(&path)).transpose()?.unwrap_or_default(),
        audiences: vec![client],
        claim_rules: rules,
        username: Mapping { claim, prefix: Some(prefix), ..Mapping::default() },
        groups: groups.unwrap_or_default(),
        ..JwtConfig::default()
    };
    Ok(AuthenticationConfig { jwt: vec![jwt], anonymous: None, algorithms: values.list("oidc-signing-algs") })
}

/// Who else knows tokens.
pub fn token_webhook(values: &Values) -> Option<TokenWebhookConfig> {
    let config_file = PathBuf::from(values.given("authentication-token-webhook-config-file")?);
    Some(TokenWebhookConfig { config_file, version: values.text("authentication-token-webhook-version"), cache_ttl: values.duration("authentication-token-webhook-cache-ttl") })
}

/// Who decides about requests, and the file that says so.
pub fn authorization(values: &Values) -> Result<(Vec<AuthorizationMode>, Option<Followed>)> {
    let Some(path) = values.given("authorization-config") else { return Ok((modes(values)?, None)) };
    let others = ["mode", "webhook-config-file", "webhook-version", "webhook-cache-authorized-ttl", "webhook-cache-unauthorized-ttl"];
    ensure!(
        !others.iter().any(|flag| values.is_set(&format!("authorization-{flag}"))),
        "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
    );
    let file = Followed::read(Path::new(&path))?;
    let AuthorizationConfig(modes) = AuthorizationConfig::from_text(&file.text, &[])?;
    Ok((modes, Some(file)))
}

fn modes(values: &Values) -> Result<Vec<AuthorizationMode>> {
    let named = values.list("authorization-mode");
    let named = if named.is_empty() { vec!["AlwaysAllow".to_string()] } else { named };
    let webhook = values.given("authorization-webhook-config-file");
    let mut modes = Vec::new();
    for name in &named {
        let mode = match name.as_str() {
            "Node" => AuthorizationMode::Node,
            "RBAC" => AuthorizationMode::Rbac,
            "AlwaysAllow" => AuthorizationMode::AlwaysAllow,
            "AlwaysDeny" => AuthorizationMode::AlwaysDeny,
            "Webhook" => {
                let config_file = webhook.clone().context("authorization-mode Webhook's authorization config file not passed")?;
                AuthorizationMode::Webhook(Box::new(WebhookSettings {
                    name: "default".into(),
                    config_file: config_file.into(),
                    version: values.text("authorization-webhook-version"),
                    timeout: std::time::Duration::from_secs(30),
                    authorized_ttl: values.duration("authorization-webhook-cache-authorized-ttl"),
                    unauthorized_ttl: values.duration("authorization-webhook-cache-unauthorized-ttl"),
                    denies_on_failure: false,
                    conditions: Vec::new(),
                }))
            }
            "ABAC" => {
                let path = values.given("authorization-policy-file").context("authorization-mode ABAC's authorization policy file not passed")?;
                let abac = Abac::from_text(&read(&path)?).with_context(|| format!("error reading policy file {path}"))?;
                if abac.unversioned {
                    tracing::warn!("Policy file {path} contained unversioned rules. See docs/admin/authorization.md#abac-mode for ABAC file format details.");
                }
                AuthorizationMode::Abac(Arc::new(abac))
            }
            _ => bail!("authorization-mode {name:?} is not a valid mode"),
        };
        ensure!(!modes.contains(&mode), "authorization-mode {name:?} has mode specified more than once");
        modes.push(mode);
    }
    ensure!(values.given("authorization-policy-file").is_none() || named.iter().any(|n| n == "ABAC"), "cannot specify --authorization-policy-file without mode ABAC");
    ensure!(webhook.is_none() || named.iter().any(|n| n == "Webhook"), "cannot specify --authorization-webhook-config-file without mode Webhook");
    Ok(modes)
}

/// With AlwaysAllow, whoever is nobody may do nothing: upstream turns anonymous requests off.
fn always_allows(values: &Values) -> bool {
    let allows = values.given("authorization-config").is_none() && modes(values).is_ok_and(|modes| modes.contains(&AuthorizationMode::AlwaysAllow));
    if allows {
        tracing::warn!("AnonymousAuth is not allowed with the AlwaysAllow authorizer. Resetting AnonymousAuth to false. You should use a different authorizer");
    }
    allows
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;
    use serde_json::json;

    fn values(line: &[&str]) -> Values {
        let line: Vec<String> = line.iter().map(|w| w.to_string()).collect();
        flags::parse("kube-apiserver", flags::table(include_str!("apiserver.flags")), &line).expect("flags")
    }

    fn known(line: &[&str]) -> Result<(AuthenticationConfig, AnonymousConfig)> {
        authentication(&values(line), &["https://own.example.com".into()]).map(|(config, anonymous, _)| (config, anonymous))
    }

    #[test]
    fn flags_name_one_issuer() {
        let url = "--oidc-issuer-url=https://a.example.com";
        let (config, anonymous) = known(&["--authorization-mode=RBAC", url, "--oidc-client-id=kube", "--oidc-groups-claim=groups", "--oidc-groups-prefix=g:", "--oidc-required-claim=a=b,c", "--oidc-required-claim=d=e", "--oidc-signing-algs=RS256,ES256"]).expect("settings");
        let jwt = &config.jwt[0];
        assert_eq!((jwt.url.as_str(), jwt.audiences.join(" "), config.algorithms.join(" "), anonymous.enabled), ("https://a.example.com", "kube".into(), "RS256 ES256".into(), true));
        assert_eq!((jwt.username.claim.as_str(), jwt.username.prefix.as_deref()), ("sub", Some("https://a.example.com#")));
        assert_eq!((jwt.groups.claim.as_str(), jwt.groups.prefix.as_deref()), ("groups", Some("g:")));
        let rules: Vec<_> = jwt.claim_rules.iter().map(|r| (r.claim.as_str(), r.required_value.as_str())).collect();
        assert_eq!(rules, [("a", "b,c"), ("d", "e")], "a value may have commas");
        let prefix = |more: &[&str]| known(&[&[url, "--oidc-client-id=kube"], more].concat()).expect("settings").0.jwt[0].username.prefix.clone();
        assert_eq!(prefix(&["--oidc-username-claim=email"]).as_deref(), Some(""));
        assert_eq!(prefix(&["--oidc-username-prefix=-"]).as_deref(), Some(""));
        assert_eq!(prefix(&["--oidc-username-prefix=x:"]).as_deref(), Some("x:"));
        let why = |line: &[&str]| format!("{:#}", known(line).expect_err("it is refused"));
        assert_eq!(why(&["--oidc-client-id=kube"]), "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set");
        assert_eq!(why(&["--oidc-issuer-url=http://a.example.com", "--oidc-client-id=kube"]), "invalid authentication configuration: jwt[0].issuer.url: Invalid value: \"http://a.example.com\": URL scheme must be https");
        assert_eq!(why(&[url, "--oidc-client-id=kube", "--oidc-signing-algs=HS256"]), "oidc: unsupported signing alg: \"HS256\"");
        assert!(why(&["--oidc-issuer-url=https://own.example.com", "--oidc-client-id=kube"]).contains("URL must not overlap with disallowed issuers"));
    }

    #[test]
    fn a_file_says_who_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("authentication.yaml");
        let flag = format!("--authentication-config={}", path.display());
        let write = |more: serde_json::Value| {
            let mut config = json!({"apiVersion": "apiserver.config.k8s.io/v1beta1", "kind": "AuthenticationConfiguration"});
            more.as_object().into_iter().flatten().for_each(|(k, v)| config[k] = v.clone());
            std::fs::write(&path, config.to_string()).expect("written");
        };
        write(json!({"jwt": [{"issuer": {"url": "https://a.example.com", "audiences": ["kube"]}, "claimMappings": {"username": {"expression": "claims.sub"}}}],
            "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]}}));
        let (config, anonymous) = known(&[&flag]).expect("settings");
        assert_eq!((config.jwt.len(), config.algorithms.len(), anonymous), (1, 9, AnonymousConfig { enabled: true, paths: vec!["/livez".into()] }));
        let why = |line: &[&str]| format!("{:#}", known(line).expect_err("it is refused"));
        assert_eq!(why(&[&flag, "--oidc-client-id=x"]), "authentication-config file and oidc-* flags are mutually exclusive");
        assert!(why(&[&flag, "--anonymous-auth=true"]).starts_with("anonymous: Forbidden: --anonymous-auth flag cannot be set"));
        write(json!({"jwt": [{}]}));
        assert!(why(&[&flag]).starts_with("invalid authentication configuration: [jwt[0].issuer.url: Required value, "));
        write(json!({"jwts": []}));
        assert!(why(&[&flag]).ends_with("strict decoding error: unknown field \"jwts\""));
        std::fs::remove_file(&path).expect("removed");
        assert!(why(&[&flag]).starts_with("failed to load authentication configuration from file "));
    }

    #[test]
    fn webhooks_and_files_decide() {
        let decided = |line: &[&str]| authorization(&values(line)).map(|(modes, _)| modes);
        let why = |line: &[&str]| format!("{:#}", decided(line).expect_err("it is refused"));
        let modes = decided(&["--authorization-mode=Node,RBAC,Webhook", "--authorization-webhook-config-file=/k", "--authorization-webhook-cache-unauthorized-ttl=0"]).expect("modes");
        let AuthorizationMode::Webhook(webhook) = &modes[2] else { panic!("{modes:?}") };
        assert_eq!((webhook.name.as_str(), webhook.version.as_str(), webhook.authorized_ttl.as_secs(), webhook.unauthorized_ttl.as_secs(), webhook.denies_on_failure), ("default", "v1beta1", 300, 0, false));
        assert_eq!(why(&["--authorization-mode=Webhook"]), "authorization-mode Webhook's authorization config file not passed");
        assert_eq!(why(&["--authorization-mode=RBAC", "--authorization-webhook-config-file=/k"]), "cannot specify --authorization-webhook-config-file without mode Webhook");
        assert_eq!(why(&["--authorization-mode=ABAC"]), "authorization-mode ABAC's authorization policy file not passed");
        assert_eq!(why(&["--authorization-mode=RBAC", "--authorization-policy-file=/k"]), "cannot specify --authorization-policy-file without mode ABAC");
        let dir = tempfile::tempdir().expect("a directory");
        let policies = dir.path().join("policies.jsonl");
        let abac = format!("--authorization-policy-file={}", policies.display());
        std::fs::write(&policies, "{\"user\": \"bob\"}").expect("written");
        let modes = decided(&["--authorization-mode=ABAC,RBAC", &abac]).expect("modes");
        assert!(matches!(&modes[..], [AuthorizationMode::Abac(_), AuthorizationMode::Rbac]), "{modes:?}");
        std::fs::write(&policies, "# nobody\n{").expect("written");
        assert!(why(&["--authorization-mode=ABAC", &abac]).contains("policies.jsonl: line 2: {: "));
        let path = dir.path().join("authorization.yaml");
        std::fs::write(&path, "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]").expect("written");
        let flag = format!("--authorization-config={}", path.display());
        assert_eq!(decided(&[&flag]).expect("modes"), [AuthorizationMode::Node, AuthorizationMode::Rbac]);
        assert!(why(&[&flag, "--authorization-mode=RBAC"]).starts_with("--authorization-config can not be specified when"));
        let webhook = token_webhook(&values(&["--authentication-token-webhook-config-file=/k"])).expect("a webhook");
        assert_eq!((webhook.version.as_str(), webhook.cache_ttl.as_secs()), ("v1beta1", 120));
        assert_eq!(token_webhook(&values(&[])), None);
    }
}
