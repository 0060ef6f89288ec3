//! Development chores; `cargo xtask <verb>`.

use std::path::Path;

mod gen_schema;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["gen-schema", kubernetes] => print!("{}", gen_schema::run(Path::new(kubernetes))?),
        _ => anyhow::bail!("usage: xtask gen-schema KUBERNETES_DIR"),
    }
    Ok(())
}
