//! The gate: everything that must hold before a change lands.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::{cargo, e2e, tidy, vm};

fn run_step(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let start = Instant::now();
    step().with_context(|| format!("the step \"{name}\" failed"))?;
    println!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn run(full: bool) -> Result<()> {
    let start = Instant::now();
    run_step("formatting", || run_cargo(&["fmt", "--all", "--check"]))?;
    run_step("lints", || {
        run_cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
    })?;
    // The second command of the README.
    run_step("tests", || run_cargo(&["test", "--workspace"]))?;
    run_step("without features", || {
        run_cargo(&[
            "check",
            "--quiet",
            "-p",
            "ovl-driver",
            "--no-default-features",
        ])
    })?;
    run_step("documentation", || {
        let mut doc = cargo();
        doc.args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings");
        crate::run(&mut doc)
    })?;
    run_step("tidy", tidy::run)?;
    run_step("e2e", || e2e::run(&e2e::Options::for_ci(!full)))?;
    run_step("e2e without calls", || {
        e2e::run(&e2e::Options::denying(!full))
    })?;
    run_step("vm", || vm::run(&vm::Options::for_ci(!full)))?;
    run_step("power cuts", || {
        let all = vm::Options::power_cuts_for_ci(!full);
        all.iter().try_for_each(vm::run)
    })?;
    if full {
        run_step("docker", || e2e::run(&e2e::Options::with_docker()))?;
    }
    println!("== all passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    crate::run(cargo().args(arguments))
}
