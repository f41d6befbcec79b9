//! Expressions and what they come to, from tables.

use cel::{Activation, Env};

#[test]
fn language() {
    run(include_str!("tables/language.txt"));
}

#[test]
fn libraries() {
    run(include_str!("tables/libraries.txt"));
}

fn run(table: &str) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in table.lines().filter(|l| !l.is_empty() && !l.starts_with("# ")) {
        let (expression, wanted) = line.split_once(" ==> ").unwrap_or_else(|| panic!("no arrow in {line}"));
        count += 1;
        let got = outcome(expression, wanted);
        if let Err(got) = got {
            wrong.push(format!("{line}\n     got: {got}"));
        }
    }
    assert!(count > 90, "only {count} lines");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

fn outcome(expression: &str, wanted: &str) -> Result<(), String> {
    let env = Env::new();
    let program = match env.compile(expression) {
        Ok(program) => program,
        Err(issues) => {
            let wanted = wanted.strip_prefix("issue: ").ok_or_else(|| issues.to_string())?;
            return if issues.iter().any(|i| i.message == wanted) || issues.to_string() == wanted { Ok(()) } else { Err(issues.to_string()) };
        }
    };
    let result = program.eval(&Activation::new()).result;
    if let Some(message) = wanted.strip_prefix("error: ") {
        return match result {
            Err(e) if e.message() == message => Ok(()),
            other => Err(format!("{other:?}")),
        };
    }
    let value = result.map_err(|e| format!("error: {e}"))?;
    let same = env.compile(&format!("dyn({expression}) == dyn({wanted})")).map_err(|e| format!("{value:?}, and {e}"))?;
    match same.eval(&Activation::new()).result {
        Ok(v) if v.as_bool() == Some(true) => Ok(()),
        _ => Err(format!("{value:?}")),
    }
}
