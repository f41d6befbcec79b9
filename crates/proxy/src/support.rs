//! Whether the kernel has what our rules are made of: each kind of statement is tried alone.

use nft::{Family, Field, Hook, HookKind, HookPoint, LOCAL, Nftables, Reject, Rule, RuleSet, Statement, Verdict, ct_state};

const PROBE: &str = "knarr-probe";

/// Something that the kernel lacks.
#[derive(Debug)]
pub struct Missing {
    /// The module that has it.
    pub module: &'static str,
    /// The kernel's configuration option.
    pub option: &'static str,
    /// What the kernel said.
    pub error: nft::Error,
}

/// What the kernel lacks, tried by tables that are taken away again. To touch nothing at all, give it a handle of a
/// network namespace that nobody uses.
pub fn missing(nft: &dyn Nftables) -> Vec<Missing> {
    let mut missing = Vec::new();
    for (module, option, hook, statement) in samples() {
        let mut rules = RuleSet::new(Family::Ip, PROBE, "tries what the kernel has");
        let rule = statement.map(|s| Rule::new([s]));
        rules.chain("probe", Some(hook), rule.into_iter().collect());
        rules.chain("other", None, Vec::new());
        let tried = nft.apply(None, &rules).and_then(|()| nft.delete(Family::Ip, PROBE));
        if let Err(error) = tried {
            missing.push(Missing { module, option, error });
            // without it nothing else can be tried
            if module == "nf_tables" {
                break;
            }
        }
    }
    missing
}

fn samples() -> [(&'static str, &'static str, Hook, Option<Statement>); 9] {
    let hook = |kind, point| Hook { kind, point, priority: 0 };
    let filter = hook(HookKind::Filter, HookPoint::Output);
    [
        ("nf_tables", "NF_TABLES", filter, None),
        ("nft_chain_nat", "NFT_NAT", hook(HookKind::Nat, HookPoint::Prerouting), None),
        ("nft_nat", "NFT_NAT", hook(HookKind::Nat, HookPoint::Prerouting), Some(Statement::Dnat(vec![([192, 0, 2, 1].into(), 80)]))),
        ("nft_masq", "NFT_MASQ", hook(HookKind::Nat, HookPoint::Postrouting), Some(Statement::Masquerade)),
        ("nft_ct", "NFT_CT", filter, Some(Statement::HasBits(Field::ConnectionState, ct_state::INVALID))),
        ("nft_fib_ipv4", "NFT_FIB_IPV4", filter, Some(Statement::Is(Field::DestinationType, LOCAL.to_ne_bytes().to_vec()))),
        ("nft_reject_ipv4", "NFT_REJECT_IPV4", filter, Some(Statement::Reject(Reject::PortUnreachable))),
        ("nft_numgen", "NFT_NUMGEN", filter, Some(Statement::GotoRandom(vec!["other".into(), "other".into()]))),
        ("nf_tables", "NF_TABLES", filter, Some(Statement::Verdict(Verdict::Goto("other".into())))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use nft::conntrack::Flow;

    /// A kernel that lacks what `refuses` says.
    struct Poor(fn(&RuleSet) -> bool);

    impl Nftables for Poor {
        fn apply(&self, _: Option<&RuleSet>, next: &RuleSet) -> nft::Result<()> {
            let source = std::io::Error::from_raw_os_error(2);
            if (self.0)(next) { Err(nft::Error::Refused { object: "rule 1 of chain probe".into(), source }) } else { Ok(()) }
        }
        fn delete(&self, _: Family, table: &str) -> nft::Result<bool> {
            assert_eq!(table, PROBE);
            Ok(true)
        }
        fn forget_connections(&self, _: &dyn Fn(&Flow) -> bool) -> nft::Result<usize> {
            unreachable!("a probe leaves connections alone")
        }
    }

    fn modules(kernel: Poor) -> Vec<&'static str> {
        missing(&kernel).into_iter().map(|m| m.module).collect()
    }

    #[test]
    fn each_lack_is_named_alone() {
        assert!(modules(Poor(|_| false)).is_empty());
        assert_eq!(modules(Poor(|_| true)), ["nf_tables"], "the rest cannot be tried");
        let rejects = |rules: &RuleSet| rules.chains["probe"].rules.iter().any(|r| matches!(r.statements[..], [Statement::Reject(_)]));
        assert_eq!(modules(Poor(rejects)), ["nft_reject_ipv4"]);
    }

    #[test]
    fn leaves_nothing() {
        let kernel = nft::fake::Fake::new();
        assert!(missing(&kernel).is_empty());
        assert!(kernel.table(Family::Ip, PROBE).is_none());
    }
}
