//! A file system in memory, as simple as can be: what a volume should do, it does; and random work for both.

use std::collections::BTreeMap;

use pfs::format::InodeNo;
use pfs::volume::writer::{Allocate, Content, Position, Writer};
use pfs::volume::{FileKind, Volume, VolumePath};

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    Create(String),
    Mkdir(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Write(String, u64, Vec<u8>),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Allocate(String, u64, u64, bool),
    /// Everything from the journal into the sectors; nobody sees that.
    Empty,
}

/// What there is, by path; the root is not among it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model(pub BTreeMap<String, Node>);

/// A file with what is in it, or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    File(Vec<u8>),
    Directory,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Model {
    fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.0.get(path) == Some(&Node::Directory)
    }

    fn is_empty(&self, path: &str) -> bool {
        !self.0.keys().any(|other| other.starts_with(&format!("{path}/")))
    }

    /// Sees that the directories on the way are there.
    fn way(&self, path: &str) -> Result<(), i32> {
        let names: Vec<&str> = path.split('/').collect();
        let mut at = String::new();
        for name in &names[..names.len() - 1] {
            at = if at.is_empty() { (*name).to_owned() } else { format!("{at}/{name}") };
            match self.0.get(&at) {
                None => return Err(libc::ENOENT),
                Some(Node::File(_)) => return Err(libc::ENOTDIR),
                Some(Node::Directory) => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &str) -> Result<&mut Vec<u8>, i32> {
        self.way(path)?;
        match self.0.get_mut(path) {
            None => Err(libc::ENOENT),
            Some(Node::Directory) => Err(libc::EISDIR),
            Some(Node::File(bytes)) => Ok(bytes),
        }
    }

    /// Does it, or says with which errno it cannot be done.
    pub fn apply(&mut self, work: &Work) -> Result<(), i32> {
        match work {
            Work::Create(path) | Work::Mkdir(path) => {
                self.way(path)?;
                if self.0.contains_key(path) {
                    return Err(libc::EEXIST);
                }
                let directory = matches!(work, Work::Mkdir(_));
                self.0.insert(path.clone(), if directory { Node::Directory } else { Node::File(Vec::new()) });
            }
            Work::Unlink(path) => {
                self.file(path)?;
                self.0.remove(path);
            }
            Work::Rmdir(path) => {
                self.way(path)?;
                match self.0.get(path) {
                    None => return Err(libc::ENOENT),
                    Some(Node::File(_)) => return Err(libc::ENOTDIR),
                    Some(Node::Directory) if !self.is_empty(path) => return Err(libc::ENOTEMPTY),
                    Some(Node::Directory) => self.0.remove(path),
                };
            }
            Work::Rename(from, to) => return self.rename(from, to),
            Work::Write(path, at, bytes) => {
                let file = self.file(path)?;
                if !bytes.is_empty() {
                    let (start, end) = (*at as usize, *at as usize + bytes.len());
                    file.resize(file.len().max(end), 0);
                    file[start..end].copy_from_slice(bytes);
                }
            }
            Work::Append(path, bytes) => self.file(path)?.extend_from_slice(bytes),
            Work::Truncate(path, size) => self.file(path)?.resize(*size as usize, 0),
            Work::Allocate(path, at, len, keep) => {
                let file = self.file(path)?;
                if !keep {
                    file.resize(file.len().max((at + len) as usize), 0);
                }
            }
            Work::Empty => {}
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), i32> {
        self.way(from)?;
        let moved = self.0.get(from).cloned().ok_or(libc::ENOENT)?;
        self.way(to)?;
        match (&moved, self.0.get(to)) {
            (Node::File(_), Some(Node::Directory)) => return Err(libc::EISDIR),
            (Node::Directory, Some(Node::File(_))) => return Err(libc::ENOTDIR),
            _ => {}
        }
        if from == to {
            return Ok(());
        }
        if moved == Node::Directory {
            if format!("{}/", parent(to)).starts_with(&format!("{from}/")) {
                return Err(libc::EINVAL);
            }
            if self.0.contains_key(to) && !self.is_empty(to) {
                return Err(libc::ENOTEMPTY);
            }
        }
        self.0.remove(to);
        let below: Vec<String> =
            self.0.keys().filter(|path| *path == from || path.starts_with(&format!("{from}/"))).cloned().collect();
        for path in below {
            let node = self.0.remove(&path).unwrap();
            self.0.insert(format!("{to}{}", &path[from.len()..]), node);
        }
        Ok(())
    }

    /// What is in a volume.
    pub fn read(volume: &mut Volume) -> blockdev::Result<Self> {
        let mut nodes = BTreeMap::new();
        let mut way: Vec<String> = vec![String::new()];
        let mut files = Vec::new();
        for visit in volume.metadata().walk(InodeNo::ROOT)? {
            let visit = visit?;
            if visit.stat.inode.is_internal() {
                continue;
            }
            way.truncate(visit.depth + 1);
            let name = String::from_utf8(visit.entry.name.as_bytes().to_vec()).unwrap();
            let path = if visit.depth == 0 { name } else { format!("{}/{name}", way[visit.depth]) };
            match visit.stat.kind {
                FileKind::File => files.push((path, visit.stat.inode)),
                FileKind::Directory => {
                    way.push(path.clone());
                    nodes.insert(path, Node::Directory);
                }
            }
        }
        for (path, inode) in files {
            let map = volume.metadata().file_map(inode)?;
            let mut bytes = vec![0xee; map.size as usize];
            volume.read(&map, 0, &mut bytes)?;
            nodes.insert(path, Node::File(bytes));
        }
        Ok(Self(nodes))
    }
}

/// How two differ, for a person to read.
#[must_use]
pub fn difference(found: &Model, expected: &Model) -> String {
    let names = |model: &Model| model.0.keys().cloned().collect::<Vec<_>>();
    if names(found) != names(expected) {
        return format!("{:?} instead of {:?}", names(found), names(expected));
    }
    let other = found.0.iter().zip(&expected.0).find(|(found, expected)| found != expected);
    match other {
        Some(((path, Node::File(found)), (_, Node::File(expected)))) => {
            let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
            format!("{path}: {} bytes instead of {}, first other byte at {at:?}", found.len(), expected.len())
        }
        other => format!("{other:?}"),
    }
}

/// Does it to a volume.
pub fn perform(writer: &Writer, content: &mut Content<'_>, work: &Work) -> blockdev::Result<()> {
    let path = |path: &String| VolumePath::new(path.as_bytes());
    match work {
        Work::Create(at) => writer.create(&path(at), true).map(|_| ()),
        Work::Mkdir(at) => writer.mkdir(&path(at)).map(|_| ()),
        Work::Unlink(at) => writer.unlink(&path(at)),
        Work::Rmdir(at) => writer.rmdir(&path(at)),
        Work::Rename(from, to) => writer.rename(&path(from), &path(to)),
        Work::Write(at, offset, bytes) => {
            content.write(writer.lookup(&path(at))?, Position::At(*offset), bytes).map(|_| ())
        }
        Work::Append(at, bytes) => content.write(writer.lookup(&path(at))?, Position::End, bytes).map(|_| ()),
        Work::Truncate(at, size) => writer.truncate(writer.lookup(&path(at))?, *size),
        Work::Allocate(at, offset, len, keep_size) => {
            let how = Allocate { keep_size: *keep_size, ..Allocate::default() };
            writer.allocate(writer.lookup(&path(at))?, *offset, *len, how)
        }
        Work::Empty => writer.empty_journal(),
    }
}

/// Random work: few names, so that most of it meets something; names of all lengths; files of up to `size` bytes.
pub struct Worker {
    random: fastrand::Rng,
    size: u64,
}

impl Worker {
    #[must_use]
    pub fn new(seed: u64, size: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), size }
    }

    fn name(&mut self) -> String {
        let long = [1, 1, 1, 1, 1, 1, 63, 64, 65, 127, 128, 192, 255][self.random.usize(..13)];
        let name = self.random.u8(b'a'..=b'h') as char;
        name.to_string().repeat(long)
    }

    fn path(&mut self, model: &Model) -> String {
        let directories: Vec<&String> =
            model.0.iter().filter(|(_, node)| **node == Node::Directory).map(|(path, _)| path).collect();
        let directory = match self.random.usize(..=directories.len()) {
            0 => String::new(),
            index => format!("{}/", directories[index - 1]),
        };
        // A path has an end, too.
        let directory = if directory.len() > 2000 { String::new() } else { directory };
        format!("{directory}{}", self.name())
    }

    /// Something that exists, mostly.
    fn found(&mut self, model: &Model, directory: bool) -> String {
        let of = |node: &Node| (*node == Node::Directory) == directory;
        let all: Vec<&String> = model.0.iter().filter(|(_, node)| of(node)).map(|(path, _)| path).collect();
        if all.is_empty() || self.random.u8(..20) == 0 {
            return self.path(model);
        }
        all[self.random.usize(..all.len())].clone()
    }

    fn offset(&mut self) -> u64 {
        let offset = self.random.u64(..self.size);
        match self.random.u8(..3) {
            0 => offset,
            1 => offset / 4096 * 4096,
            _ => offset % 10_000,
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = [1, 100, 4096, 5000, 8192, 12_288, 20_000][self.random.usize(..7)];
        let first = self.random.u8(1..);
        (0..len).map(|index| first.wrapping_add((index / 7) as u8)).collect()
    }

    /// The next thing to do in a directory, which is there.
    pub fn next_below(&mut self, model: &Model, top: &str) -> Work {
        let within = |path: &String| path.strip_prefix(&format!("{top}/")).map(str::to_owned);
        let inner = model.0.iter().filter_map(|(path, node)| Some((within(path)?, node.clone()))).collect();
        let under = |path: String| format!("{top}/{path}");
        match self.next(&Model(inner)) {
            Work::Create(path) => Work::Create(under(path)),
            Work::Mkdir(path) => Work::Mkdir(under(path)),
            Work::Unlink(path) => Work::Unlink(under(path)),
            Work::Rmdir(path) => Work::Rmdir(under(path)),
            Work::Rename(from, to) => Work::Rename(under(from), under(to)),
            Work::Write(path, at, bytes) => Work::Write(under(path), at, bytes),
            Work::Append(path, bytes) => Work::Append(under(path), bytes),
            Work::Truncate(path, size) => Work::Truncate(under(path), size),
            Work::Allocate(path, at, len, keep) => Work::Allocate(under(path), at, len, keep),
            Work::Empty => Work::Empty,
        }
    }

    /// The next thing to do.
    pub fn next(&mut self, model: &Model) -> Work {
        match self.random.u8(..100) {
            0..18 => Work::Create(self.path(model)),
            18..24 => Work::Mkdir(self.path(model)),
            24..34 => Work::Unlink(self.found(model, false)),
            34..38 => Work::Rmdir(self.found(model, true)),
            38..44 => Work::Rename(self.found(model, false), self.path(model)),
            44..47 => Work::Rename(self.found(model, false), self.found(model, false)),
            47..51 => Work::Rename(self.found(model, true), self.path(model)),
            51..70 => Work::Write(self.found(model, false), self.offset(), self.bytes()),
            70..80 => Work::Append(self.found(model, false), self.bytes()),
            80..90 => Work::Truncate(self.found(model, false), self.offset()),
            90..98 => Work::Allocate(self.found(model, false), self.offset(), self.offset() + 1, self.random.bool()),
            _ => Work::Empty,
        }
    }
}
