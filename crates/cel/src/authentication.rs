//! Expressions about who somebody is: `claims` of a token, and `user`, as an AuthenticationConfiguration has them.

use std::sync::LazyLock;

use serde_json::Value as Json;

use crate::env::Env;
use crate::program::Program;
use crate::schema::DeclType;
use crate::types::Type;
use crate::value::Value;

/// Names the claims of a token, and nothing else.
static CLAIMS: LazyLock<Env> = LazyLock::new(|| Env::new().variable_of("claims", Type::map(Type::String, Type::Dyn)));

/// Names the user, and nothing else.
static USER: LazyLock<Env> = LazyLock::new(|| {
    let text = || DeclType::string_of(0);
    let texts = || DeclType::list_of(text());
    let user = DeclType::object_of([("username", text()), ("uid", text()), ("groups", texts()), ("extra", DeclType::map_of(texts(), 0))]);
    let mut env = Env::new();
    env.declare_schema("user", "kubernetes.UserInfo", &user);
    env
});

fn compile(env: &Env, expression: &str, condition: bool) -> Result<Program, String> {
    let program = env.compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
    if condition && *program.result_type() != Type::Bool {
        return Err("must evaluate to bool".into());
    }
    Ok(program)
}

/// Compiles an expression about claims; a `condition` has to be true or false. The error is what upstream says of it.
pub fn compile_claims(expression: &str, condition: bool) -> Result<Program, String> {
    compile(&CLAIMS, expression, condition)
}

/// Compiles a condition about a user.
pub fn compile_user(expression: &str) -> Result<Program, String> {
    compile(&USER, expression, true)
}

/// Data as these expressions see it: numbers are doubles, and names can be written escaped (`claims.a__dot__b`).
pub fn value(json: &Json) -> Value<'_> {
    match json {
        Json::Number(n) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
        Json::Array(items) => Value::list(items.iter().map(value).collect()),
        Json::Object(fields) => Value::escaped_map(fields.iter().map(|(k, v)| (k.as_str(), value(v)))),
        other => Value::from_json(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eval::Activation;

    fn claims(expression: &str, claims: Json) -> String {
        let program = compile_claims(expression, false).expect("an expression");
        let activation = Activation::new().with("claims", value(&claims));
        match program.eval(&activation).result {
            Ok(value) => value.to_json().map_or_else(|e| e.to_string(), |v| v.to_string()),
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn claims_are_what_the_token_says() {
        assert_eq!(claims("'a:' + claims.sub", json!({"sub": "x"})), "\"a:x\"");
        assert_eq!(claims("claims.roles.split(',')", json!({"roles": "a,b"})), "[\"a\",\"b\"]");
        assert_eq!(claims("claims.?roles.orValue([])", json!({})), "[]");
        assert_eq!(claims("claims.roles", json!({})), "no such key: roles");
        assert_eq!(claims("has(claims.email) && !has(claims.phone)", json!({"email": "x"})), "true");
        assert_eq!(claims("claims.exp - claims.nbf <= 86400 && type(claims.exp) == double", json!({"exp": 2000, "nbf": 1000})), "true");
        // names that are no identifiers, at every depth
        let odd = json!({"example.com/a": {"b.c": [{"d/e": "deep"}]}});
        assert_eq!(claims("claims.example__dot__com__slash__a.b__dot__c[0].d__slash__e", odd.clone()), "\"deep\"");
        assert_eq!(claims("claims['example.com/a']['b.c'][0]['d/e']", odd.clone()), "\"deep\"");
        assert_eq!(claims("has(claims.example__dot__com__slash__a) && 'example.com/a' in claims && size(claims) == 1", odd), "true");
    }

    #[test]
    fn what_is_no_condition_is_told() {
        assert_eq!(compile_claims("claims.x", true).unwrap_err(), "must evaluate to bool");
        assert_eq!(compile_user("user.username").unwrap_err(), "must evaluate to bool");
        assert!(compile_user("user.name == ''").unwrap_err().starts_with("compilation failed: ERROR: <input>:1:5: undefined field 'name'"));
        assert!(compile_claims("user.username == ''", true).unwrap_err().contains("undeclared reference to 'user'"));
        let condition = compile_user("user.groups.all(g, !g.startsWith('system:')) && user.extra['a.b/c'] == ['d'] && user.uid == ''").expect("a condition");
        let user = json!({"username": "x", "uid": "", "groups": ["dev"], "extra": {"a.b/c": ["d"]}});
        assert_eq!(condition.eval(&Activation::new().with("user", value(&user))).result.unwrap().as_bool(), Some(true));
    }

    #[test]
    fn fields_are_found_however_they_are_written() {
        for expression in ["claims.email", "has(claims.email)", "claims.?email.orValue('')", "[1].map(x, claims.email)"] {
            assert_eq!(compile_claims(expression, false).unwrap().fields_of("claims"), ["email"], "{expression}");
        }
        assert!(compile_claims("claims['email'] + claims.a.email", false).unwrap().fields_of("claims") == ["a"]);
    }
}
