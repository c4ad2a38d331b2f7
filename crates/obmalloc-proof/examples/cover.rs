use obmalloc_proof::*;
fn main() {
    let p = obmalloc::profile::Profile::of_version(&std::env::args().nth(1).unwrap()).unwrap();
    let n: u64 = std::env::args().nth(2).unwrap().parse().unwrap();
    let mut here = Here::new(p);
    let mut m = std::collections::BTreeMap::<String, u64>::new();
    let t = std::time::Instant::now();
    for s in 0..n {
        let log = here.run(&generate(s));
        let (head, _) = log.split_once("close\n").unwrap();
        let new = head.lines().filter(|l| l.starts_with("new")).count();
        *m.entry(format!("objects {:02}x", new / 10)).or_default() += 1;
        for l in head.lines() {
            let w: String = l.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            let mut w = w.replace("####", "#").replace("###", "#").replace("##", "#");
            if w.starts_with("look") || w.starts_with("count") || w.starts_with("stop") {
                continue;
            }
            if l.starts_with("collect(") {
                w = if l.ends_with("= 0") { "collect 0".into() } else { "collect n".into() };
            }
            if l.starts_with("garbage ") {
                w = if l.len() > 8 { "garbage n".into() } else { "garbage 0".into() };
            }
            if l.starts_with("start") {
                w = l.split(',').next().unwrap().into();
            }
            if l.starts_with("objects") {
                w = if l.ends_with("frozen 0") { "objects".into() } else { "objects frozen".into() }
            }
            if l.starts_with("stats") {
                w = "stats".into();
                let v: Vec<u64> = l.split(|c: char| !c.is_ascii_digit()).filter_map(|x| x.parse().ok()).collect();
                if v[2] + v[5] + v[8] > 0 {
                    w = "stats uncollectable".into()
                }
            }
            if l.starts_with("refer") {
                w = w.split(' ').next().unwrap().into()
            }
            *m.entry(w).or_default() += 1;
        }
    }
    eprintln!("{:?} per graph", t.elapsed() / n as u32);
    for (k, v) in m {
        println!("{v:9} {k}")
    }
}
