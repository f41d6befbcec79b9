//! Who a container runs as: names are looked up in the image's own passwd and group files.

use std::path::Path;

/// The largest passwd or group file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// A resolved user.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, without repetition.
    pub groups: Vec<u32>,
}

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// `user`, `user:group`, each a name or a number, or nothing; from the image or the CRI.
    pub user: &'a str,
    /// Overrides the group.
    pub gid: Option<u32>,
    /// More supplementary groups.
    pub groups: &'a [i64],
    /// Take only these groups, not those that the image's group file says (`Strict`).
    pub strict: bool,
}

/// Resolves against the files below a root. A number needs no entry.
pub fn resolve(root: &Path, wanted: &Wanted<'_>) -> Result<User, String> {
    let read = |name: &str| -> Result<String, String> {
        let bytes = sys::beneath::read(root, Path::new(name), MAX_FILE).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    };
    let (user, group) = match wanted.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted.user, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read("/etc/passwd")?;
    let entry = lines(&passwd).find(|fields| fields.first() == Some(&user)).or_else(|| {
        let by_number = |fields: &Vec<&str>| user.parse::<u32>().is_ok() && fields.get(2) == Some(&user);
        lines(&passwd).find(by_number)
    });
    let number = |field: Option<&&str>| field.and_then(|f| f.parse::<u32>().ok());
    let uid = match &entry {
        Some(fields) => number(fields.get(2)),
        None => user.parse().ok(),
    };
    let uid = uid.ok_or_else(|| format!("unable to find user {user}: no matching entries in passwd file"))?;
    let name = entry.as_ref().and_then(|f| f.first().copied());
    let mut gid = entry.as_ref().and_then(|f| number(f.get(3))).unwrap_or(0);

    let group_file = read("/etc/group")?;
    if let Some(group) = group.filter(|g| !g.is_empty()) {
        let found = lines(&group_file).find(|f| f.first() == Some(&group)).and_then(|f| number(f.get(2)));
        let found = found.or_else(|| group.parse().ok());
        gid = found.ok_or_else(|| format!("unable to find group {group}: no matching entries in group file"))?;
    }
    gid = wanted.gid.unwrap_or(gid);

    let mut groups = Vec::new();
    if !wanted.strict
        && let Some(name) = name {
            let member = |f: &Vec<&str>| f.get(3).is_some_and(|members| members.split(',').any(|m| m == name));
            groups.extend(lines(&group_file).filter(member).filter_map(|f| number(f.get(2))));
        }
    groups.extend(wanted.groups.iter().filter_map(|g| u32::try_from(*g).ok()));
    if !wanted.strict || !groups.is_empty() {
        groups.insert(0, gid);
    }
    let mut seen = std::collections::HashSet::new();
    groups.retain(|g| seen.insert(*g));
    Ok(User { uid, gid, groups })
}

fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nwheel:x:10:root,web\nstaff:x:50:web\n").unwrap();
        dir
    }

    fn user(wanted: Wanted<'_>) -> Result<User, String> {
        resolve(root().path(), &wanted)
    }

    #[test]
    fn names_and_numbers_resolve() {
        let web = User { uid: 33, gid: 34, groups: vec![34, 10, 50] };
        assert_eq!(user(Wanted { user: "web", ..Wanted::default() }).unwrap(), web);
        assert_eq!(user(Wanted { user: "33", ..Wanted::default() }).unwrap(), web);
        let other = user(Wanted { user: "1000:staff", groups: &[7, 50], ..Wanted::default() }).unwrap();
        assert_eq!(other, User { uid: 1000, gid: 50, groups: vec![50, 7] });
        let strict = user(Wanted { user: "web", strict: true, groups: &[7], gid: Some(9) }).unwrap();
        assert_eq!(strict, User { uid: 33, gid: 9, groups: vec![9, 7] });
        assert_eq!(user(Wanted::default()).unwrap().uid, 0);
    }

    #[test]
    fn unknown_names_are_said() {
        assert!(user(Wanted { user: "nobody-here", ..Wanted::default() }).unwrap_err().contains("nobody-here"));
        assert!(user(Wanted { user: "0:nogroup", ..Wanted::default() }).unwrap_err().contains("nogroup"));
    }

    #[test]
    fn an_image_without_files_runs_as_root() {
        let dir = tempfile::tempdir().unwrap();
        let user = resolve(dir.path(), &Wanted::default()).unwrap();
        assert_eq!(user, User { uid: 0, gid: 0, groups: vec![0] });
    }
}
