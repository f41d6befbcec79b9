//! Runs each target for a bounded time: its seeds, then random mutations of them.
//!
//! `KNARR_FUZZ_SECONDS` says how long each; unless told 1, and `MOST` inputs at the most, so that a faster machine does
//! not find what a slower one does not. `KNARR_FUZZ_SEED` says where the mutations begin: always at the same place unless
//! told, so that a run that fails fails again.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fuzz::mutate::{Random, mutate};

/// Longest input that is made; seeds may be longer.
const MAX: usize = 4096;
/// So many inputs unless told how long.
const MOST: usize = 20_000;
/// What one input may take here, in a build without optimisation and beside other tests.
const SLOW: Duration = Duration::from_secs(10);
/// What a thread of the server has for a stack, four times: code without optimisation needs that.
const STACK: usize = 8 << 20;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no seeds");
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

/// Where a panic of any thread was: some are caught, such as those in a request's handler.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn run(name: &'static str) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.lock().unwrap().push(info.to_string());
            usual(info);
        }));
    });
    let body = move || {
        let target = fuzz::find(name).expect("a target");
        let mut inputs = seeds(name);
        let seconds = number("KNARR_FUZZ_SECONDS");
        let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
        let most = if seconds.is_some() { usize::MAX } else { inputs.len() + MOST };
        let mut random = Random::new(number("KNARR_FUZZ_SEED").unwrap_or(1));
        let mut done = 0usize;
        loop {
            let made = match inputs.get(done) {
                Some(seed) => seed.clone(),
                None if Instant::now() > until || done >= most => break,
                None => {
                    let from = &inputs[random.below(inputs.len())];
                    mutate(from, random.below(usize::MAX) as u64, MAX.max(from.len()))
                }
            };
            let begun = Instant::now();
            let before = PANICS.lock().unwrap().len();
            let ended = std::panic::catch_unwind(|| (target.run)(&made));
            let (took, panics) = (begun.elapsed(), PANICS.lock().unwrap()[before..].join("\n"));
            if ended.is_err() || took > SLOW || (!panics.is_empty() && name == "requests") {
                let file = std::env::temp_dir().join(format!("knarr-fuzz-{name}-{done}"));
                std::fs::write(&file, &made).unwrap();
                panic!("input {done} ({}) took {took:?}: {panics}\n{}", file.display(), String::from_utf8_lossy(&made));
            }
            done += 1;
            // Some mutations live on, so that changes add up.
            if done > inputs.len() && inputs.len() < 500 && random.below(8) == 0 {
                inputs.push(made);
                done = inputs.len();
            }
        }
        println!("{name}: {done} inputs");
    };
    std::thread::Builder::new().stack_size(STACK).spawn(body).unwrap().join().unwrap();
}

macro_rules! bounded {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_run() {
            let names: Vec<&str> = fuzz::TARGETS.iter().map(|t| t.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

bounded! {
    json yaml protobuf object validate label_selector field_selector quantity names times json_path url json_patch merge_patch strategic_patch
    apply managed_fields cel cel_admission crd custom_object grpc spdy streams encryption tokens certificates kubeconfig image_name archive stored requests
}
