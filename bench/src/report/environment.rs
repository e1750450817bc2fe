//! On what a run ran, from `/proc`, `/sys` and `/etc`.

use std::fs;
use std::path::Path;

use blockdev::ByteSize;

use super::model::{Cpu, Environment, Target};

/// What is said of something the system does not tell.
const UNKNOWN: &str = "unknown";

impl Environment {
    /// This machine, on which `targets` are measured. The host's name is left out: reports are shown around.
    #[must_use]
    pub fn of_this_machine(targets: Vec<Target>) -> Self {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Self::of_root(Path::new("/"), u32::try_from(count).unwrap_or(u32::MAX), targets)
    }

    /// The machine whose file system is at `root`.
    fn of_root(root: &Path, cpus: u32, targets: Vec<Target>) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
        let line = |path: &str| read(path).filter(|text| !text.is_empty());
        let cpuinfo = read("proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| field(&cpuinfo, ':', name);
        // ARM processors do not name themselves.
        let model = field("model name").unwrap_or(std::env::consts::ARCH).to_owned();
        let memory_kib = read("proc/meminfo").and_then(|text| field_number(&text, "MemTotal")).unwrap_or(0);
        Self {
            kernel: line("proc/sys/kernel/osrelease").unwrap_or_else(|| UNKNOWN.to_owned()),
            os: read("etc/os-release")
                .and_then(|text| self::field(&text, '=', "PRETTY_NAME").map(|name| name.trim_matches('"').to_owned()))
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            cpu: Cpu { model, count: cpus },
            memory: ByteSize::kib(memory_kib),
            clocksource: line("sys/devices/system/clocksource/clocksource0/current_clocksource")
                .unwrap_or_else(|| UNKNOWN.to_owned()),
            virtualisation: hypervisor(
                line("sys/class/dmi/id/sys_vendor").as_deref(),
                line("sys/hypervisor/type").as_deref(),
                field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            ),
            container: [(".dockerenv", "docker"), ("run/.containerenv", "podman")]
                .into_iter()
                .find(|(mark, _)| root.join(mark).exists())
                .map(|(_, kind)| kind.to_owned())
                .or_else(|| line("run/systemd/container")),
            hostname: None,
            targets,
        }
    }
}

impl Environment {
    /// What it is, line by line, for people; the facts of targets are left out.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("kernel", self.kernel.clone()),
            ("system", self.os.clone()),
            ("processor", format!("{} × {}", self.cpu.count, self.cpu.model)),
            ("memory", self.memory.to_string()),
            ("clock", self.clocksource.clone()),
        ];
        let optional = [("hypervisor", &self.virtualisation), ("container", &self.container), ("host", &self.hostname)];
        lines.extend(optional.into_iter().filter_map(|(what, value)| Some((what, value.clone()?))));
        lines
    }
}

/// The hypervisor's name as well as it can be told; nothing on bare metal.
fn hypervisor(vendor: Option<&str>, kind: Option<&str>, flag: bool) -> Option<String> {
    // Makers of machines that are always virtual; a maker of both kinds counts only where the processor says so.
    let always = ["QEMU", "VMware", "Xen", "innotek GmbH", "Parallels", "Amazon EC2", "Google", "DigitalOcean"];
    match vendor {
        Some(vendor) if flag || always.iter().any(|name| vendor.starts_with(name)) => Some(vendor.to_owned()),
        _ => kind.map(str::to_owned).or_else(|| flag.then(|| UNKNOWN.to_owned())),
    }
}

/// The value of the first `name<separator>value` line.
fn field<'a>(text: &'a str, separator: char, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The number in `name: 123 kB`.
fn field_number(text: &str, name: &str) -> Option<u64> {
    field(text, ':', name)?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Environment {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Environment::of_root(root.path(), 2, Vec::new())
    }

    #[test]
    fn a_virtual_machine() {
        let environment = machine(&[
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor lahf_lm\n"),
            ("proc/meminfo", "MemTotal:       24684084 kB\nMemFree:        1 kB\n"),
            ("proc/sys/kernel/osrelease", "6.18.44\n"),
            ("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("sys/class/dmi/id/sys_vendor", "QEMU\n"),
            (".dockerenv", ""),
        ]);
        assert_eq!(environment.cpu, Cpu { model: "AMD EPYC".to_owned(), count: 2 });
        assert_eq!(environment.memory, ByteSize::kib(24_684_084));
        assert_eq!(environment.kernel, "6.18.44");
        assert_eq!(environment.os, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(environment.clocksource, "tsc");
        assert_eq!(environment.virtualisation.as_deref(), Some("QEMU"));
        assert_eq!(environment.container.as_deref(), Some("docker"));
        assert_eq!(environment.hostname, None);
    }

    #[test]
    fn a_machine_that_tells_nothing() {
        let environment = machine(&[]);
        assert_eq!(environment.kernel, UNKNOWN);
        assert_eq!(environment.os, UNKNOWN);
        assert_eq!(environment.cpu.model, std::env::consts::ARCH);
        assert_eq!(environment.memory, ByteSize::ZERO);
        assert_eq!((environment.virtualisation, environment.container), (None, None));
    }

    #[test]
    fn bare_metal_and_hypervisors() {
        for (vendor, kind, flag, expected) in [
            (Some("LENOVO"), None, false, None),
            (Some("Google"), None, false, Some("Google")),
            (Some("Microsoft Corporation"), None, false, None),
            (Some("Microsoft Corporation"), None, true, Some("Microsoft Corporation")),
            (None, Some("xen"), true, Some("xen")),
            (None, None, true, Some(UNKNOWN)),
        ] {
            assert_eq!(hypervisor(vendor, kind, flag).as_deref(), expected, "{vendor:?} {kind:?} {flag}");
        }
    }

    #[test]
    fn this_machine_says_something() {
        let environment = Environment::of_this_machine(Vec::new());
        assert!(environment.cpu.count > 0);
        assert_ne!(environment.kernel, UNKNOWN);
    }
}
