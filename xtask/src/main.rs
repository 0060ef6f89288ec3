//! Development chores: `cargo run -p xtask -- VERB`.

mod advisories;
mod deps_check;
mod gen_schema;

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["deps-check"] => deps_check::run(),
        ["advisories"] => advisories::run(None),
        ["advisories", "--db", directory] => advisories::run(Some(Path::new(directory))),
        ["gen-schema", kubernetes] => {
            print!("{}", gen_schema::run(Path::new(kubernetes))?);
            Ok(())
        }
        _ => anyhow::bail!(
            "usage: xtask deps-check | advisories [--db DIRECTORY] | gen-schema KUBERNETES_DIR"
        ),
    }
}
