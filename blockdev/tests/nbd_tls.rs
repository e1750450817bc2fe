//! A disk served over NBD through TLS: to clients that nobody here wrote, with certificates that openssl makes.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod nbd_client;
mod server;

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nbd_client::Client;
use server::{Server, scratch, vdisk};

const TEST: &str = "who_has_a_certificate_is_let_in_and_nobody_else";

/// Runs a program, whatever comes of it. Nothing where it is not installed, which is said.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    let out = Command::new(program).args(arguments).output().ok();
    if out.is_none() {
        tests::skip(TEST, &format!("needs {program}: apt-get install openssl libnbd-bin qemu-utils"));
    }
    out
}

/// An authority, and what it has signed: certificates by the names that libnbd and QEMU want them to have.
struct Authority(PathBuf);

impl Authority {
    fn new(directory: PathBuf) -> Option<Self> {
        fs::create_dir(&directory).unwrap();
        let authority = Self(directory);
        let (key, certificate) = (authority.file("ca-key.pem"), authority.file("ca-cert.pem"));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ])?;
        Some(authority)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Signs a certificate of `whose`, for what `usage` says.
    fn sign(&self, whose: &str, usage: &str) -> Option<()> {
        let (key, request, certificate) = (
            self.file(&format!("{whose}-key.pem")),
            self.file(&format!("{whose}.csr")),
            self.file(&format!("{whose}-cert.pem")),
        );
        let extensions = self.file("extensions");
        let text = format!("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\n");
        fs::write(&extensions, text).unwrap();
        openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &format!("/CN={whose}"),
            "-keyout",
            &key,
            "-out",
            &request,
        ])?;
        let (ca, ca_key) = (self.file("ca-cert.pem"), self.file("ca-key.pem"));
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ])
    }
}

fn openssl(arguments: &[&str]) -> Option<()> {
    let out = run("openssl", arguments)?;
    assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    Some(())
}

/// What a client has: the authority that it trusts, and perhaps a certificate.
fn wallet(directory: &Path, trusted: &Authority, certified: Option<&Authority>) -> String {
    fs::create_dir(directory).unwrap();
    fs::copy(trusted.file("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
    for name in ["client-cert.pem", "client-key.pem"] {
        if let Some(authority) = certified {
            fs::copy(authority.file(name), directory.join(name)).unwrap();
        }
    }
    directory.to_str().unwrap().to_owned()
}

#[test]
fn who_has_a_certificate_is_let_in_and_nobody_else() {
    let dir = scratch();
    let make = |name: &str| {
        let authority = Authority::new(dir.path().join(name))?;
        authority.sign("server", "serverAuth")?;
        authority.sign("client", "clientAuth")?;
        Some(authority)
    };
    let (Some(ours), Some(other)) = (make("ours"), make("other")) else { return };
    let server = Server::start(dir.path(), &["--nbd", "tcp:127.0.0.1:0", "--tls", ours.0.to_str().unwrap()]);
    let status = server.ctl(&["status"]);
    let exports = status["exports"].as_array().unwrap();
    let uri = exports.iter().filter_map(|export| export["at"].as_str()).find(|uri| uri.starts_with("nbds://")).unwrap();
    let port = uri.rsplit_once(':').unwrap().1.split_once('/').unwrap().0;
    let wallets = [
        ("ours", wallet(&dir.path().join("good"), &ours, Some(&ours)), true),
        ("none", wallet(&dir.path().join("bare"), &ours, None), false),
        ("of another authority", wallet(&dir.path().join("forged"), &ours, Some(&other)), false),
        ("of one that does not trust the server", wallet(&dir.path().join("wary"), &other, Some(&ours)), false),
    ];
    for (what, wallet, works) in &wallets {
        let uri = format!("{uri}?tls-certificates={wallet}");
        let Some(out) = run("nbdinfo", &["--size", &uri]) else { return };
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.success(), *works, "nbdinfo, certificate {what}: {said}");
        let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={wallet}");
        let image =
            format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=disk,tls-creds=tls0");
        let Some(out) = run("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]) else { return };
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.success(), *works, "qemu-img, certificate {what}: {said}");
    }
    // There and back, encrypted, over several connections.
    let good = format!("{uri}?tls-certificates={}", wallets[0].1);
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let bytes: Vec<u8> = (0..8u32 << 20).map(|index| (index / 4096 * 31 + index % 251).to_le_bytes()[0]).collect();
    fs::write(&there, &bytes).unwrap();
    for (from, to) in [(there.to_str().unwrap(), &*good), (&*good, back.to_str().unwrap())] {
        let Some(out) = run("nbdcopy", &["--connections=4", "--flush", from, to]) else { return };
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert!(fs::read(&back).unwrap() == bytes && fs::read(&server.image).unwrap() == bytes);
    // Who has a certificate, but does not begin TLS, and who sends nonsense instead of TLS.
    let plain = format!("nbd://127.0.0.1:{port}/disk");
    let Some(out) = run("nbdinfo", &["--size", &plain]) else { return };
    assert!(!out.status.success(), "it let somebody in without TLS");
    let connect = || TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    for nonsense in [&[0; 4096][..], b"IHAVEOPT\0\0\0\x05\0\0\0\0\x16\x03\x01\xff\xff\x01\0", &[0x16; 100]] {
        let mut stream = connect();
        let _ = std::io::Write::write_all(&mut stream, &[&[0, 0, 0, 3][..], nonsense].concat());
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // It says what it has to say, and closes the connection.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // The Unix socket is for those whom its permissions let in, and none of this has disturbed them.
    assert_eq!(Client::at(&server.socket, "disk").read(0, 512), Ok(bytes[..512].to_vec()));
}

#[test]
fn without_the_right_files_nothing_is_served() {
    let dir = scratch();
    let image = dir.path().join("disk.img");
    fs::write(&image, [0; 4096]).unwrap();
    let tls = dir.path().join("tls");
    fs::create_dir(&tls).unwrap();
    let serve = || {
        let arguments = ["serve", image.to_str().unwrap(), "--nbd", "tcp:127.0.0.1:0", "--tls", tls.to_str().unwrap()];
        let out = vdisk(&arguments);
        assert!(!out.status.success());
        String::from_utf8(out.stderr).unwrap()
    };
    assert!(serve().contains("ca-cert.pem"));
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        fs::write(tls.join(name), "-----BEGIN NOTHING-----\n").unwrap();
    }
    let said = serve();
    assert!(said.contains("ca-cert.pem"), "{said}");
}
