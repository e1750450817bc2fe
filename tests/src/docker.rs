//! Docker for the tests: the daemon that is here, or one of our own for as long as the tests run; and an image with
//! PostgreSQL, made on this machine since no registry may be in reach. Both are kept below `target/docker`.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// The image: Debian with its PostgreSQL.
pub const IMAGE: &str = "onedisk-test-postgres:bookworm";

/// The process id of a daemon that we have started.
static OURS: AtomicI32 = AtomicI32::new(0);

/// A Docker daemon that has [`IMAGE`].
#[derive(Debug)]
pub struct Docker {
    /// What DOCKER_HOST has to be.
    pub host: String,
    /// The other way to it, if it is one of our own.
    pub tls: Option<Tls>,
}

/// A port of a daemon that lets in who has a certificate.
#[derive(Debug)]
pub struct Tls {
    /// What DOCKER_HOST has to be.
    pub host: String,
    /// What DOCKER_CERT_PATH has to be.
    pub certificates: PathBuf,
}

impl Docker {
    /// `docker` with `args`, on this daemon.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        docker(&self.host, args)
    }

    /// What `docker` with `args` prints.
    ///
    /// # Panics
    /// When it fails.
    #[allow(clippy::must_use_candidate, reason = "what it does may matter more than what it prints")]
    pub fn output(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("docker runs");
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// The daemon; or what is missing for it.
///
/// # Errors
/// What has to be installed or run.
///
/// # Panics
/// When what is installed does not work.
pub fn find() -> Result<&'static Docker, &'static str> {
    static FOUND: OnceLock<Result<Docker, &'static str>> = OnceLock::new();
    FOUND.get_or_init(set_up).as_ref().map_err(|why| *why)
}

fn set_up() -> Result<Docker, &'static str> {
    if Command::new("docker").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Err("needs Docker: apt-get install docker.io");
    }
    let directory = directory();
    fs::create_dir_all(&directory).expect("target/docker can be made");
    let lock = File::create(directory.join("lock")).expect("target/docker can be locked");
    lock.lock().expect("target/docker can be locked");
    let given = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let (host, tls) = if answers(&given) {
        (given, None)
    } else if !crate::is_root() {
        return Err("needs Docker: start it, and let this user use it");
    } else if Command::new("dockerd").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Err("needs Docker: apt-get install docker.io");
    } else {
        start(&directory)
    };
    if !docker(&host, &["image", "inspect", IMAGE]).output().is_ok_and(|output| output.status.success()) {
        if !crate::is_root() || Command::new("debootstrap").arg("--version").stdout(Stdio::null()).status().is_err() {
            return Err("needs root and debootstrap once, to make an image: apt-get install debootstrap");
        }
        make_image(&host, &directory);
    }
    Ok(Docker { host, tls })
}

/// `target/docker`.
fn directory() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.ancestors().nth(3).expect("cargo puts tests into target/<profile>/deps").join("docker")
}

fn docker(host: &str, args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(["--host", host]).args(args).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
    command
}

fn answers(host: &str) -> bool {
    docker(host, &["version"]).output().is_ok_and(|output| output.status.success())
}

/// Starts a daemon that ends with this process.
fn start(directory: &Path) -> (String, Option<Tls>) {
    const PATIENCE: Duration = Duration::from_secs(60);
    // The paths of its sockets have 107 bytes.
    let run = PathBuf::from(format!("/run/onedisk-tests-{}", std::process::id()));
    fs::create_dir_all(&run).expect("root may make a directory in /run");
    let host = format!("unix://{}/docker.sock", run.display());
    let log = File::create(directory.join("dockerd.log")).expect("target/docker can be written");
    let mut daemon = Command::new("dockerd");
    daemon.arg("--data-root").arg(directory.join("data")).arg("--exec-root").arg(run.join("exec"));
    daemon.arg("--pidfile").arg(run.join("pid")).args(["--bridge", "none", "--host", &host]).current_dir("/");
    let tls = make_certificates(&directory.join("tls")).map(|certificates| {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
        let host = format!("tcp://{}", socket.local_addr().expect("a socket has an address"));
        daemon.args(["--host", &host, "--tlsverify", "--tlscacert"]).arg(certificates.join("ca.pem"));
        daemon.arg("--tlscert").arg(certificates.join("daemon.pem"));
        daemon.arg("--tlskey").arg(certificates.join("daemon-key.pem"));
        Tls { host, certificates }
    });
    daemon.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
    // A Ctrl-C for us reaches it through us.
    daemon.process_group(0);
    // SAFETY: prctl is async-signal-safe, and nothing is allocated.
    unsafe {
        daemon.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    // The signal comes when the thread ends that has started it: this one lives as long as the process.
    std::thread::spawn(move || {
        let mut child = daemon.spawn().expect("dockerd can be started");
        OURS.store(i32::try_from(child.id()).expect("a process id fits"), Ordering::SeqCst);
        let _ = child.wait();
        let _ = fs::remove_dir_all(run);
        OURS.store(0, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    });
    // SAFETY: the function may be called at any time and does not unwind.
    unsafe { libc::atexit(end) };
    let deadline = Instant::now() + PATIENCE;
    while !answers(&host) {
        assert!(Instant::now() < deadline, "dockerd answers; see {}", directory.join("dockerd.log").display());
        std::thread::sleep(Duration::from_millis(50));
    }
    (host, tls)
}

/// Makes an authority in `directory`, and what it says of a daemon (`daemon.pem`) and of a client (`cert.pem`, as Docker calls
/// it); nothing where there is no openssl.
fn make_certificates(directory: &Path) -> Option<PathBuf> {
    fs::create_dir_all(directory).expect("target/docker can be written");
    let made = |name: &str, key: &str, args: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        openssl.args(["-subj", &format!("/CN={name}"), "-out", &format!("{name}.pem"), "-keyout", key]).args(args);
        openssl.current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null());
        openssl.status().is_ok_and(|status| status.success())
    };
    let by_ca = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-addext", "basicConstraints=critical,CA:FALSE", "-addext"];
    let daemon = ["extendedKeyUsage=serverAuth", "-addext", "subjectAltName=IP:127.0.0.1"];
    let all = made("ca", "ca-key.pem", &[])
        && made("daemon", "daemon-key.pem", &[&by_ca[..], &daemon].concat())
        && made("cert", "key.pem", &[&by_ca[..], &["extendedKeyUsage=clientAuth"]].concat());
    all.then(|| directory.to_owned())
}

/// Ends the daemon, and waits for it: what it has mounted goes with it.
extern "C" fn end() {
    const TRIES: u32 = 3000;
    let id = OURS.load(Ordering::SeqCst);
    if id == 0 {
        return;
    }
    // SAFETY: sends a signal to a child that nobody has waited for.
    unsafe { libc::kill(id, libc::SIGTERM) };
    for _ in 0..TRIES {
        if OURS.load(Ordering::SeqCst) == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes [`IMAGE`]: from Debian's packages, in about a minute and a half.
fn make_image(host: &str, directory: &Path) {
    let root = directory.join("rootfs");
    let remove = || {
        let _ = fs::remove_dir_all(&root);
    };
    remove();
    let log = File::create(directory.join("debootstrap.log")).expect("target/docker can be written");
    let mut bootstrap = Command::new("debootstrap");
    bootstrap.args(["--variant=minbase", "--include=postgresql", "bookworm"]).arg(&root);
    bootstrap.arg("http://deb.debian.org/debian").stdin(Stdio::null());
    bootstrap.stdout(log.try_clone().expect("a file can be shared")).stderr(log);
    let made = bootstrap.status().is_ok_and(|status| status.success());
    assert!(made, "debootstrap makes an image; see {}", directory.join("debootstrap.log").display());
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).args(["--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists", "-c", "."]);
    let mut archive = tar.stdout(Stdio::piped()).spawn().expect("tar runs");
    let given = archive.stdout.take().expect("it is piped");
    let imported = docker(host, &["import", "-", IMAGE]).stdin(given).stdout(Stdio::null()).status();
    let archived = archive.wait().is_ok_and(|status| status.success());
    remove();
    assert!(archived && imported.is_ok_and(|status| status.success()), "the image can be imported");
}

/// Docker with the [image](mod@crate::docker) of the tests; without it the enclosing test is skipped, loudly.
#[macro_export]
macro_rules! needs_docker {
    () => {
        match $crate::docker::find() {
            Ok(docker) => docker,
            Err(why) => {
                let name = std::thread::current().name().unwrap_or("a test").to_owned();
                $crate::skip(&name, why);
                return;
            }
        }
    };
}
