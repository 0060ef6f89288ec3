use knapsack::bins::*;
use std::time::{Duration, Instant};
fn cpu() -> Duration {
    let t = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(t.split(' ').next().unwrap().parse().unwrap())
}
fn main() {
    // args: dir list of families with step, budget ms
    let args: Vec<String> = std::env::args().collect();
    let family = &args[1];
    let step: usize = args[2].parse().unwrap();
    let ms: u64 = args[3].parse().unwrap();
    let filter = args.get(4).cloned().unwrap_or_default();
    let offset: usize = args.get(5).map_or(0, |s| s.parse().unwrap());
    let text = std::fs::read_to_string(format!("/work/shared/data/vbp/{family}_summary_known.csv"))
        .unwrap();
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip(1)
        .map(|l| l.split('\t').map(|s| s.trim().to_string()).collect())
        .collect();
    let mut groups: std::collections::BTreeMap<String, [i64; 9]> = Default::default();
    let total = Instant::now();
    for (i, r) in rows.iter().enumerate() {
        if i % step != offset || !filter.split(',').any(|f| r[0].contains(f)) {
            continue;
        }
        let class = r[0].split('_').next().unwrap().to_string();
        let sub = if class == "classC" {
            "Caprara".to_string()
        } else if class == "classF" {
            "Falkenauer".into()
        } else {
            class.clone()
        };
        let path = format!("/tmp/kb/vbp/{family}_instances_multidim/{sub}/{}.vbp", r[0]);
        let t = std::fs::read_to_string(&path).unwrap();
        let mut n = t.split_whitespace().map(|x| x.parse::<i64>().unwrap());
        let d = n.next().unwrap() as usize;
        let capacity: Vec<i64> = (0..d).map(|_| n.next().unwrap()).collect();
        let m = n.next().unwrap();
        let items = (0..m)
            .map(|_| BinItem {
                size: (0..d).map(|_| n.next().unwrap()).collect(),
                count: n.next().unwrap() as u64,
            })
            .collect();
        let p = BinProblem { capacity, items };
        let start = cpu();
        let stop = move || cpu() - start > Duration::from_millis(ms);
        let Ok(s) = solve(
            &p,
            &BinOptions {
                work_max: u64::MAX,
                seed: 1,
                stop: Some(&stop),
            },
        ) else {
            let g = groups.entry("refused".to_string()).or_default();
            g[0] += 1;
            continue;
        };
        let e = cpu() - start;
        check(&p, &s).unwrap();
        let opt: i64 = r[2].parse().unwrap();
        let best: i64 = r[3].parse().unwrap();
        let c = s.bin_count as i64;
        let parts: Vec<&str> = r[0].split('_').collect();
        let key = format!("{}_{:>3}_{:>2}", parts[0], parts[1], parts[2]);
        for k in [key, format!("{class} all"), "total".to_string()] {
            let g = groups.entry(k).or_default();
            g[0] += 1;
            g[1] += (opt > 0) as i64;
            g[2] += (c == opt) as i64;
            g[3] += (c < best) as i64;
            g[4] += (c > best) as i64;
            g[5] += s.is_optimal() as i64;
            g[6] += e.as_millis() as i64;
            g[7] = g[7].max(e.as_millis() as i64);
            g[8] += (best == opt) as i64;
        }
        if opt > 0 && (c < opt || s.lower_bound as i64 > opt) {
            println!(
                "CONTRADICTION {} {} lb {} opt {}",
                r[0], c, s.lower_bound, opt
            );
        }
        if std::env::var("V").is_ok() {
            println!(
                "{} lb {} -> {} opt {} best {} ours {} {:?}",
                r[0], r[1], s.lower_bound, opt, best, c, e
            );
        }
    }
    println!("group n known ==opt (published ==opt) <best >best proven avg_ms max_ms");
    for (k, g) in groups {
        println!(
            "{k:18} {:4} {:4} {:4} ({:4}) {:4} {:4} {:4} {:5} {:5}",
            g[0],
            g[1],
            g[2],
            g[8],
            g[3],
            g[4],
            g[5],
            g[6] / g[0],
            g[7]
        );
    }
    println!("{:?}", total.elapsed());
}
