//! The page's data: what happened when does not depend on the moment that is asked for.

use std::path::Path;

use obmalloc::profile;
use obmalloc_trace::analysis::{Answered, Asked, Inquiry};
use obmalloc_trace::format::Reader;
use serde_json::Value;

/// The page's data of a golden recording at a moment.
fn page(release: &str, at: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../__test__/golden").join(format!("{release}.trace"));
    let trace = std::fs::read(path).expect("a golden trace");
    let open = move || Ok(vec![Reader::new(trace.clone())?]);
    let profile = profile::Profile::named(release).expect("a release");
    let asked = Asked { at: at.into(), report: true, ..Asked::default() };
    let mut inquiry = Inquiry::new(asked, profile, Box::new(open)).expect("a trace");
    while inquiry.step(10_000).expect("undamaged") {}
    match inquiry.answer() {
        Some(Answered::Page(page)) => serde_json::to_value(&page).expect("JSON"),
        _ => panic!("expected a page"),
    }
}

#[test]
fn what_happened_after_the_moment_is_told_as_if_the_moment_were_the_end() {
    for profile in profile::ALL {
        let release = profile.release();
        let whole = page(release, "event:60000");
        let last = whole["why"]["trace"]["events"].as_u64().expect("a number") - 1;
        let whole = page(release, &format!("event:{last}"));
        for at in ["event:3000", "event:60000", "peak", "end"] {
            let page = page(release, at);
            for of in ["timeline", "arenaEvents", "play", "slots"] {
                assert_eq!(page[of], whole[of], "{of} of {release} at {at}");
            }
        }
    }
}
