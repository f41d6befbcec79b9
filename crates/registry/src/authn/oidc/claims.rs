//! Who the holder of a token is, by its claims. The token's signature, time and audience are checked elsewhere.

use api::field::go_quote as quote;
use apiserver::UserInfo;
use cel::{Activation, Value as Cel};
use serde_json::{Map, Value};

use super::config::{Expression, Expressions, JwtConfig, Mapping};

/// The user that an issuer's configuration makes of claims; the error is what upstream says.
pub(super) fn user(config: &JwtConfig, expressions: &Expressions, claims: &Map<String, Value>) -> Result<UserInfo, String> {
    let tree = Value::Object(claims.clone());
    let activation = Activation::new().with("claims", cel::authentication::value(&tree));
    let mut user = UserInfo {
        name: name(&config.username, expressions.username.as_ref(), claims, &activation)?,
        groups: groups(&config.groups, expressions.groups.as_ref(), claims, &activation)?,
        uid: uid(&config.uid, expressions.uid.as_ref(), claims, &activation)?,
        ..UserInfo::default()
    };
    if let Some(jti) = claims.get("jti").and_then(Value::as_str).filter(|j| !j.is_empty()) {
        user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={jti}")]);
    }
    for (key, expression) in &expressions.extra {
        let values = list(&evaluate(expression, &activation)?).map_err(|why| format!("oidc: error evaluating extra claim expression: {}: {why}", expression.text))?;
        if !values.is_empty() {
            user.extra.insert(key.clone(), values);
        }
    }
    for rule in config.claim_rules.iter().filter(|r| !r.claim.is_empty()) {
        let claim = &rule.claim;
        if !claims.contains_key(claim) {
            return Err(format!("oidc: required claim {claim} not present in ID token"));
        }
        let value = text(claims, claim).map_err(|why| format!("oidc: parse claim {claim}: {why}"))?;
        if value != rule.required_value {
            return Err(format!("oidc: required claim {claim} value does not match. Got = {value}, want = {}", rule.required_value));
        }
    }
    conditions(&expressions.claim_rules, &activation).map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))?;
    if !expressions.user_rules.is_empty() {
        let shown = serde_json::json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        let activation = Activation::new().with("user", cel::authentication::value(&shown));
        conditions(&expressions.user_rules, &activation).map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))?;
    }
    Ok(user)
}

fn evaluate<'a>(expression: &'a Expression, activation: &Activation<'a>) -> Result<Cel<'a>, String> {
    expression.program.eval(activation).result.map_err(|e| format!("expression '{}' resulted in error: {e}", expression.text))
}

fn conditions<'a>(rules: &'a [(Expression, String)], activation: &Activation<'a>) -> Result<(), String> {
    // All are evaluated before one of them counts.
    let mut results = Vec::new();
    for (expression, message) in rules {
        results.push((evaluate(expression, activation)?.as_bool(), expression, message));
    }
    for (result, expression, message) in results {
        match result {
            None => return Err("validation expression must return a boolean".into()),
            Some(false) => return Err(format!("validation expression '{}' failed: {message}", expression.text)),
            Some(true) => {}
        }
    }
    Ok(())
}

/// What Go says of JSON that is no `wanted`.
fn no(value: &Value, wanted: &str) -> String {
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("json: cannot unmarshal {is} into Go value of type {wanted}")
}

/// A claim that is text.
fn text(claims: &Map<String, Value>, claim: &str) -> Result<String, String> {
    match claims.get(claim) {
        None => Err("claim not present".into()),
        Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(no(other, "string")),
    }
}

fn name<'a>(mapping: &Mapping, expression: Option<&'a Expression>, claims: &Map<String, Value>, activation: &Activation<'a>) -> Result<String, String> {
    if let Some(expression) = expression {
        let wrong = |why: String| format!("oidc: error evaluating username claim expression: {why}");
        let value = evaluate(expression, activation).map_err(wrong)?;
        return match value.as_str() {
            None => Err(wrong("username claim expression must return a string".into())),
            Some("") => Err("oidc: empty username via CEL expression is not allowed".into()),
            Some(name) => Ok(name.to_owned()),
        };
    }
    let claim = &mapping.claim;
    let name = text(claims, claim).map_err(|why| format!("oidc: parse username claims {}: {why}", quote(claim)))?;
    if claim == "email" {
        match claims.get("email_verified") {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false) | Value::Null) => return Err("oidc: email not verified".into()),
            Some(other) => return Err(format!("oidc: parse 'email_verified' claim: {}", no(other, "bool"))),
        }
    }
    Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
}

fn groups<'a>(mapping: &Mapping, expression: Option<&'a Expression>, claims: &Map<String, Value>, activation: &Activation<'a>) -> Result<Vec<String>, String> {
    if !mapping.claim.is_empty()
        && let Some(value) = claims.get(&mapping.claim)
    {
        let wrong = |value: &Value| format!("oidc: parse groups claim {}: {}", quote(&mapping.claim), no(value, "string"));
        let groups = match value {
            Value::Null => Vec::new(),
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().map(|g| g.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>().ok_or_else(|| wrong(value))?,
            other => return Err(wrong(other)),
        };
        let prefix = mapping.prefix.as_deref().unwrap_or_default();
        return Ok(groups.into_iter().map(|g| format!("{prefix}{g}")).collect());
    }
    let Some(expression) = expression else { return Ok(Vec::new()) };
    let made = evaluate(expression, activation).and_then(|value| list(&value));
    made.map_err(|why| format!("oidc: error evaluating group claim expression: {why}"))
}

fn uid<'a>(mapping: &Mapping, expression: Option<&'a Expression>, claims: &Map<String, Value>, activation: &Activation<'a>) -> Result<String, String> {
    if !mapping.claim.is_empty() {
        return text(claims, &mapping.claim).map_err(|why| format!("oidc: parse uid claim {}: {why}", quote(&mapping.claim)));
    }
    let Some(expression) = expression else { return Ok(String::new()) };
    let wrong = |why: String| format!("oidc: error evaluating uid claim expression: {why}");
    let value = evaluate(expression, activation).map_err(wrong)?;
    value.as_str().map(str::to_owned).ok_or_else(|| wrong("uid claim expression must return a string".into()))
}

/// Text, or a list of texts; what is empty is left out.
fn list(value: &Cel<'_>) -> Result<Vec<String>, String> {
    let wrong = || "expression must return a string or a list of strings".to_string();
    let texts = match value {
        Cel::Null => Vec::new(),
        Cel::String(text) => vec![text.to_string()],
        Cel::List(items) => {
            let item = |item: Result<Cel<'_>, cel::Error>| item.ok().and_then(|v| v.as_str().map(str::to_owned)).ok_or_else(wrong);
            items.iter().map(item).collect::<Result<Vec<_>, _>>()?
        }
        _ => return Err(wrong()),
    };
    Ok(texts.into_iter().filter(|t| !t.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::config::{AuthenticationConfig, compile};
    use super::*;
    use serde_json::json;

    /// The user of claims, or what is wrong with them, under these parts of a configuration.
    fn known(parts: &str, claims: Value) -> Result<UserInfo, String> {
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: [{{issuer: {{url: 'https://a.example.com', audiences: [a]}}, {parts}}}]");
        let config = AuthenticationConfig::from_text(&text).expect("a configuration");
        let expressions = compile(&config, &[]).unwrap_or_else(|e| panic!("{e:?}")).remove(0);
        user(&config.jwt[0], &expressions, claims.as_object().expect("claims"))
    }

    fn by_name(claim: &str, claims: Value) -> Result<String, String> {
        known(&format!("claimMappings: {{username: {{claim: {claim}, prefix: 'p:'}}}}"), claims).map(|u| u.name)
    }

    #[test]
    fn claims_are_names() {
        assert_eq!(by_name("sub", json!({"sub": "jane"})), Ok("p:jane".into()));
        assert_eq!(by_name("sub", json!({})), Err("oidc: parse username claims \"sub\": claim not present".into()));
        assert_eq!(by_name("sub", json!({"sub": 1})), Err("oidc: parse username claims \"sub\": json: cannot unmarshal number into Go value of type string".into()));
        assert_eq!(by_name("email", json!({"email": "j@x"})), Ok("p:j@x".into()));
        assert_eq!(by_name("email", json!({"email": "j@x", "email_verified": true})), Ok("p:j@x".into()));
        assert_eq!(by_name("email", json!({"email": "j@x", "email_verified": false})), Err("oidc: email not verified".into()));
        assert!(by_name("email", json!({"email": "j@x", "email_verified": "yes"})).unwrap_err().starts_with("oidc: parse 'email_verified' claim: "));
        let groups = |value: Value| known("claimMappings: {username: {claim: sub, prefix: ''}, groups: {claim: g, prefix: 'o:'}, uid: {claim: u}}", json!({"sub": "x", "g": value, "u": "7"}));
        assert_eq!(groups(json!(["a", "b"])).map(|u| (u.groups, u.uid)), Ok((vec!["o:a".into(), "o:b".into()], "7".into())));
        assert_eq!(groups(json!("a")).unwrap().groups, ["o:a"]);
        assert!(groups(json!([1])).unwrap_err().starts_with("oidc: parse groups claim \"g\": json: cannot unmarshal"));
    }

    #[test]
    fn expressions_are_users() {
        let mappings = "claimMappings: {username: {expression: \"'x:' + claims.sub\"}, groups: {expression: \"claims.roles.split(',')\"}, uid: {expression: claims.id}, \
            extra: [{key: example.org/tenant, valueExpression: \"[string(claims.tenant), '']\"}, {key: example.org/none, valueExpression: claims.?none.orValue('')}]}";
        let claims = json!({"sub": "jane", "roles": "a,,b", "id": "7", "tenant": "t", "jti": "j1"});
        let user = known(mappings, claims.clone()).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str(), user.groups.join(" ")), ("x:jane", "7", "a b".into()));
        assert_eq!(json!(user.extra), json!({"example.org/tenant": ["t"], "authentication.kubernetes.io/credential-id": ["JTI=j1"]}));
        let mut without = claims.clone();
        without.as_object_mut().unwrap().remove("sub");
        assert_eq!(known(mappings, without).unwrap_err(), "oidc: error evaluating username claim expression: expression ''x:' + claims.sub' resulted in error: no such key: sub");
        let odd = |mapping: &str| known(&format!("claimMappings: {{{mapping}}}"), claims.clone()).unwrap_err();
        assert_eq!(odd("username: {expression: '1'}"), "oidc: error evaluating username claim expression: username claim expression must return a string");
        assert_eq!(odd("username: {expression: \"''\"}"), "oidc: empty username via CEL expression is not allowed");
        assert_eq!(odd("username: {expression: claims.sub}, groups: {expression: '[1]'}"), "oidc: error evaluating group claim expression: expression must return a string or a list of strings");
        assert_eq!(odd("username: {expression: claims.sub}, uid: {expression: '1'}"), "oidc: error evaluating uid claim expression: uid claim expression must return a string");
    }

    #[test]
    fn rules_refuse() {
        let rules = "claimMappings: {username: {claim: sub, prefix: ''}}, claimValidationRules: [{claim: hd, requiredValue: example.com}, \
            {expression: 'claims.exp - claims.nbf <= 86400', message: too long}], userValidationRules: [{expression: \"!user.username.startsWith('system:')\", message: reserved}]";
        let claims = |sub: &str, hd: Value, exp: i64| json!({"sub": sub, "hd": hd, "exp": exp, "nbf": 0});
        let why = |claims: Value| known(rules, claims).unwrap_err();
        assert!(known(rules, claims("jane", json!("example.com"), 86400)).is_ok());
        assert_eq!(why(json!({"sub": "jane"})), "oidc: required claim hd not present in ID token");
        assert_eq!(why(claims("jane", json!("other"), 1)), "oidc: required claim hd value does not match. Got = other, want = example.com");
        assert_eq!(why(claims("jane", json!(1), 1)), "oidc: parse claim hd: json: cannot unmarshal number into Go value of type string");
        assert_eq!(why(claims("jane", json!("example.com"), 86401)), "oidc: error evaluating claim validation expression: validation expression 'claims.exp - claims.nbf <= 86400' failed: too long");
        assert_eq!(why(claims("system:admin", json!("example.com"), 1)), "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('system:')' failed: reserved");
    }
}
