//! fio as the one to beat at sequential I/O.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use blockdev::{ByteSize, Error, ErrorKind, Result};

use crate::contest::Contestant;

/// The queue depths of which the best counts.
const DEPTHS: [u32; 3] = [8, 16, 32];

/// fio with what serves it best here: io_uring, O_DIRECT, registered buffers and file, 1 MiB at a time. `rw` is `read`
/// or `write`; a write ends with fsync, into a file that fio reserves before, as is its default.
pub(crate) fn sequential<'a>(rw: &'static str, path: &'a Path, size: ByteSize) -> impl Iterator<Item = Contestant<'a>> {
    DEPTHS.into_iter().map(move |depth| {
        let command = move || {
            let mut command = Command::new("fio");
            command.arg("--name=peer").arg(format!("--rw={rw}")).arg(format!("--size={}", size.bytes()));
            let mut filename = OsString::from("--filename=");
            filename.push(path);
            command.arg(filename).arg(format!("--iodepth={depth}"));
            command.args(["--bs=1M", "--ioengine=io_uring", "--direct=1", "--fixedbufs=1", "--registerfiles=1"]);
            // Zeroes, as the others write: what compresses or detects them treats all alike.
            command.args(["--zero_buffers=1", "--end_fsync=1", "--output-format=json"]);
            command
        };
        let mut contestant = Contestant::new("fio", command);
        contestant.depth = Some(depth);
        contestant.reported = Some(if rw == "read" { read_bandwidth } else { write_bandwidth });
        contestant
    })
}

fn read_bandwidth(json: &str) -> Result<f64> {
    bandwidth(json, "read")
}

fn write_bandwidth(json: &str) -> Result<f64> {
    bandwidth(json, "write")
}

/// The bandwidth that fio reports, in bytes per second.
fn bandwidth(json: &str, direction: &str) -> Result<f64> {
    let unexpected = || Error::new(ErrorKind::VerifyFailed, "fio's JSON is not as expected: no bw_bytes");
    // Notices may come before the document.
    let document = json.find('{').map_or("", |start| &json[start..]);
    let value: serde_json::Value = serde_json::from_str(document).map_err(|source| unexpected().with_source(source))?;
    value["jobs"][0][direction]["bw_bytes"].as_f64().ok_or_else(unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_bandwidth_is_found_after_its_notices() {
        let json = "note: both iodepth >= 1 ...\n{\"jobs\": [{\"read\": {\"bw_bytes\": 0}, \"write\": {\"bw_bytes\": 1846503566}}]}";
        assert_eq!(write_bandwidth(json).unwrap(), 1_846_503_566.0);
        assert_eq!(read_bandwidth(json).unwrap(), 0.0);
        for bad in ["", "{}", "{\"jobs\": [", "{\"jobs\": []}"] {
            assert_eq!(write_bandwidth(bad).unwrap_err().kind(), ErrorKind::VerifyFailed);
        }
    }
}
