use knapsack::arrival::*;
use std::collections::HashMap;
struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E3779B97F4A7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let seeds: u64 = args[1].parse().unwrap();
    let lists: Vec<String> = args[2].split(',').map(|s| s.to_string()).collect();
    let pols: Vec<&str> = args[3].split(',').collect();
    let mut classes: HashMap<String, u32> = HashMap::new();
    let mut nodes = vec![];
    for l in std::fs::read_to_string("/work/shared/data/openb/openb_node_list_gpu_node.csv")
        .unwrap()
        .lines()
        .skip(1)
    {
        let f: Vec<&str> = l.split(',').collect();
        let n = classes.len() as u32;
        let class = *classes.entry(f[4].trim().to_string()).or_insert(n);
        nodes.push(Node {
            capacity: vec![f[1].parse().unwrap(), f[2].parse().unwrap()],
            devices: vec![1000; f[3].parse().unwrap()],
            class,
        });
    }
    let total: i64 = nodes.iter().map(|n| n.devices.iter().sum::<i64>()).sum();
    for list in &lists {
        let mut pods = vec![];
        for l in std::fs::read_to_string(format!("/tmp/kb/openb/openb_pod_list_{list}.csv"))
            .unwrap()
            .lines()
            .skip(1)
        {
            let f: Vec<&str> = l.split(',').collect();
            let spec: Vec<u32> = f
                .get(5)
                .unwrap_or(&"")
                .split('|')
                .filter(|s| !s.is_empty())
                .map(|s| {
                    let n = classes.len() as u32;
                    *classes.entry(s.to_string()).or_insert(n)
                })
                .collect();
            let g: u32 = f[3].parse().unwrap();
            pods.push(Request {
                size: vec![
                    f[1].parse().unwrap(),
                    if std::env::var("NOMEM").is_ok() {
                        0
                    } else {
                        f[2].parse().unwrap()
                    },
                ],
                device_count: g,
                device_share: if g > 0 { f[4].parse().unwrap() } else { 0 },
                classes: (!spec.is_empty()).then_some(spec),
            });
        }
        let mut w: HashMap<Request, f64> = HashMap::new();
        for p in &pods {
            *w.entry(p.clone()).or_default() += 1.0;
        }
        let mut expected: Vec<Expected> = w
            .into_iter()
            .map(|(request, weight)| Expected { request, weight })
            .collect();
        expected.sort_by(|a, b| {
            b.weight
                .total_cmp(&a.weight)
                .then_with(|| format!("{:?}", a.request).cmp(&format!("{:?}", b.request)))
        });
        for pol in &pols {
            let policy = match *pol {
                "fgd" => Policy::FragmentationGradient,
                _ => Policy::Foresight,
            };
            let mut all = vec![];
            let t = std::time::Instant::now();
            let mut n = 0;
            let mut st = 0;
            let mut last = String::new();
            for seed in 0..seeds {
                let mut rng = Rng(seed + 42);
                let gpu = |r: &Request| r.device_count as i64 * r.device_share;
                let mut seq = pods.clone();
                for i in (1..seq.len()).rev() {
                    let j = rng.below(i + 1);
                    seq.swap(i, j);
                }
                let mut asked: i64 = seq.iter().map(gpu).sum();
                while asked * 10 > total * 13 {
                    let i = rng.below(seq.len());
                    asked -= gpu(&seq.remove(i));
                }
                loop {
                    let p = &pods[rng.below(pods.len())];
                    if (asked + gpu(p)) * 10 > total * 13 {
                        break;
                    }
                    asked += gpu(p);
                    seq.push(p.clone());
                }
                let mut fleet = Fleet::new(nodes.clone(), expected.clone(), policy).unwrap();
                let mut used = 0;
                let mut failed = 0;
                let mut curve = String::new();
                let mut arr = 0i64;
                let mut nextc = 70;
                for p in &seq {
                    n += 1;
                    match fleet.place(p).unwrap() {
                        Some(_) => used += gpu(p),
                        None => failed += 1,
                    }
                    arr += gpu(p);
                    if arr * 100 >= total * nextc {
                        curve += &format!("{nextc}:{:.2} ", used as f64 / total as f64 * 100.);
                        nextc += 5;
                    }
                    st += fleet.state_count();
                }
                all.push(used as f64 / total as f64 * 100.0);
                let mut free_cpu = 0;
                let mut frag = 0;
                let mut stranded = 0;
                for i in 0..nodes.len() {
                    let l = fleet.left(i).unwrap();
                    free_cpu += l.capacity[0];
                    for d in &l.devices {
                        if l.capacity[0] < 1000 {
                            stranded += d
                        } else {
                            frag += d
                        }
                    }
                }
                last = format!(
                    "{curve} failed {failed} freecpu {free_cpu} stranded(cpu<1) {:.2}% frag {:.2}%",
                    stranded as f64 / total as f64 * 100.,
                    frag as f64 / total as f64 * 100.
                );
            }
            let m = all.iter().sum::<f64>() / all.len() as f64;
            println!(
                "{list:12} {pol:6} {m:.3} min {:.2} max {:.2} us/pod {:.1} states {} {last}",
                all.iter().cloned().fold(100., f64::min),
                all.iter().cloned().fold(0., f64::max),
                t.elapsed().as_micros() as f64 / n as f64,
                st / n
            );
        }
    }
}
