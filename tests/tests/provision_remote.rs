//! `provision` in containers of daemons that are reached over TLS, through SSH, or that are several.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod harbour;
mod place;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harbour::Harbour;
use place::steps_of;

/// A replica is made, found again, given input, and taken away: what takes a connection of its own, and what does not.
fn goes_all_the_way(harbour: &Harbour) {
    let place = &harbour.place;
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = place.run(&["up"]);
    assert_eq!(code, Some(0), "{err}");
    let (proof, others) = steps_of(&err).split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
    assert!(proof.ends_with(": done") && others.iter().all(|step| step.ends_with(": already done")), "{err}");
    let mut cat =
        place.command(&["exec", "r", "--", "wc", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(&[b'x'; 100_000]).unwrap();
    assert_eq!(String::from_utf8(cat.wait_with_output().unwrap().stdout).unwrap(), "100000\n");
    place.ok(&["stop"]);
    assert_eq!(place.states(), ["stopped", "stopped"]);
    place.ok(&["start"]);
    assert!(place.ok(&["logs", "r"]).contains("ready to accept"));
    place.ok(&["down", "--purge", "--yes"]);
    assert_eq!(harbour.objects(), [""; 0]);
}

#[test]
fn over_tls_and_through_a_context() {
    let mut harbour = Harbour::new(tests::needs_docker!());
    let Some(tls) = &harbour.docker.tls else {
        // Its certificates are not ours to have.
        return tests::say_skipped("over_tls_and_through_a_context", "needs a Docker of the tests' own, and openssl");
    };
    let certificates = tls.certificates.to_str().unwrap().to_owned();
    let place = &mut harbour.place;
    place.environment.retain(|(name, _)| *name != "DOCKER_HOST");
    let plain = place.environment.clone();
    place.environment.extend([
        ("DOCKER_HOST", tls.host.clone()),
        ("DOCKER_TLS_VERIFY", "1".to_owned()),
        ("DOCKER_CERT_PATH", certificates.clone()),
        ("PROVISION_NODE", "w=primary,r=replica".to_owned()),
    ]);
    goes_all_the_way(&harbour);

    // The same by a context, as `docker context create` writes it.
    let place = &mut harbour.place;
    let configuration = place.root.join("docker");
    let meta = configuration.join("contexts/meta/id");
    let kept = configuration.join("contexts/tls/id/docker");
    fs::create_dir_all(&meta).unwrap();
    fs::create_dir_all(&kept).unwrap();
    let host = serde_json::json!({ "Name": "far", "Endpoints": { "docker": { "Host": tls.host } } });
    fs::write(meta.join("meta.json"), host.to_string()).unwrap();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        fs::copy(tls.certificates.join(name), kept.join(name)).unwrap();
    }
    place.environment.clone_from(&plain);
    place.environment.push(("DOCKER_CONFIG", configuration.to_str().unwrap().to_owned()));
    place.ok(&["up", "--docker", "far"]);
    let script = place.ok(&["up", "--dry-run"]);
    assert!(script.contains("docker --context far exec "), "{script}");
    place.ok(&["down", "--purge", "--yes"]);
    // A key that is not that of the certificate, and no certificate at all.
    fs::copy(tls.certificates.join("daemon-key.pem"), kept.join("key.pem")).unwrap();
    let cert = format!("cannot use {} for TLS", kept.join("cert.pem").display());
    place.refused(&["up", "--docker", "far"], 3, &cert);
    fs::remove_dir_all(configuration).unwrap();
    place.environment.retain(|(name, _)| *name != "DOCKER_CONFIG");
    place.refused(&["up", "--docker", &tls.host], 3, "Client sent an HTTP request to an HTTPS server");
    harbour.assert_nothing_left();
}

/// An sshd on 127.0.0.1, and an `ssh` that knows it, for as long as this lives.
struct Sshd {
    daemon: Child,
    port: u16,
    directory: PathBuf,
}

impl Sshd {
    /// Keys and configuration are in `directory`; whoever logs in finds Docker at `docker_host`.
    fn start(sshd: &Path, directory: PathBuf, docker_host: &str) -> Self {
        fs::create_dir(&directory).unwrap();
        for key in ["host", "key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f", key])
                .current_dir(&directory)
                .status();
            assert!(made.unwrap().success());
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let text = directory.display();
        let configuration = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {text}/host\nAuthorizedKeysFile {text}/key.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nAllowUsers root\nSetEnv DOCKER_HOST={docker_host}\n"
        );
        fs::write(directory.join("sshd_config"), configuration).unwrap();
        let client = format!(
            "Host *\nIdentityFile {text}/key\nIdentitiesOnly yes\nUserKnownHostsFile {text}/known\n\
             StrictHostKeyChecking accept-new\nLogLevel ERROR\n"
        );
        fs::write(directory.join("ssh_config"), client).unwrap();
        fs::create_dir(directory.join("bin")).unwrap();
        let ssh = directory.join("bin/ssh");
        fs::write(&ssh, format!("#!/bin/sh\nexec /usr/bin/ssh -F {text}/ssh_config \"$@\"\n")).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        // Where it gives up its rights; gone with every boot.
        fs::create_dir_all("/run/sshd").unwrap();
        let daemon = Command::new(sshd)
            .args(["-D", "-e", "-f"])
            .arg(directory.join("sshd_config"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        let sshd = Self { daemon, port, directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(sshd.directory.join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        sshd
    }

    fn path(&self) -> String {
        format!("{}:{}", self.directory.join("bin").display(), std::env::var("PATH").unwrap_or_default())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn through_ssh() {
    let test = "through_ssh";
    let mut harbour = Harbour::new(tests::needs_docker!());
    tests::needs_root!();
    let sshd = Path::new("/usr/sbin/sshd");
    if !sshd.exists() {
        return tests::skip(test, "needs sshd: apt-get install openssh-server");
    }
    let Some(address) = own_address() else {
        return tests::say_skipped(test, "this machine has no address but 127.0.0.1");
    };
    let sshd = Sshd::start(sshd, harbour.place.root.join("ssh"), &harbour.docker.host);
    let place = &mut harbour.place;
    place.environment.retain(|(name, _)| *name != "DOCKER_HOST");
    place.environment.extend([("DOCKER_HOST", format!("ssh://root@127.0.0.1:{}", sshd.port)), ("PATH", sshd.path())]);
    let node =
        |name: &str, role: &str| format!("[[node]]\nname = \"{name}\"\nrole = \"{role}\"\naddress = \"{address}\"\n");
    let file = place.root.join("cluster.toml");
    fs::write(&file, node("w", "primary") + &node("r", "replica")).unwrap();
    goes_all_the_way(&harbour);
    fs::remove_file(file).unwrap();
    let place = &harbour.place;
    place.refused(
        &["up", "--docker", &format!("ssh://nobody@127.0.0.1:{}", sshd.port)],
        3,
        "ssh says: nobody@127.0.0.1",
    );
    drop(sshd);
    harbour.assert_nothing_left();
}

/// The address of this machine that others would use; nothing if it has none.
fn own_address() -> Option<IpAddr> {
    // Nothing is sent: the kernel only chooses from where it would be.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn a_node_may_have_a_docker_of_its_own() {
    let harbour = Harbour::new(tests::needs_docker!());
    let place = &harbour.place;
    let Some(socket) = harbour.docker.host.strip_prefix("unix://") else {
        return tests::skip("a_node_may_have_a_docker_of_its_own", "needs Docker behind a Unix socket");
    };
    // Another way to the same daemon, that is another daemon for all that provision knows.
    let other = place.root.join("other.sock");
    symlink(socket, &other).unwrap();
    let file = place.root.join("cluster.toml");
    let write = |address: &str| {
        let node = |name: &str, role: &str, more: &str| {
            format!("[[node]]\nname = \"{name}\"\nrole = \"{role}\"\n{address}{more}\n")
        };
        let docker = format!("docker = \"unix://{}\"", other.display());
        fs::write(&file, node("w", "primary", "") + &node("r", "replica", &docker)).unwrap();
    };
    write("");
    place.refused(&["up"], 3, "nobody says at which address of its machine one reaches w, r [no-address]");
    if let Some(address) = own_address() {
        write(&format!("address = \"{address}\"\n"));
        let (code, out, err) = place.run(&["up"]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(&format!("host={address} port=")), "{out}");
        assert_eq!(place.states(), ["running", "running"]);
        let conninfo = place.ok(&["psql", "r", "--", "-AtXc", "SHOW primary_conninfo"]);
        assert!(conninfo.contains(&format!("host={address} ")), "{conninfo}");
        assert_eq!(place.sql("w", "SHOW listen_addresses"), "*");
        place.ok(&["down", "--purge", "--yes"]);
    }
    fs::remove_file(file).unwrap();
    fs::remove_file(other).unwrap();
    harbour.assert_nothing_left();
}
