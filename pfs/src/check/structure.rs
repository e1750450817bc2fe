//! The objects of a volume: each by itself, and how they hang together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use crate::format::{
    Blktag, BlktagNo, BlktagState, BlockIndex, CHUNK_SIZE, Checksum, Content, Damage, Direntry, DirentryNo,
    DirentryState, Hole, Inode, InodeNo, Number,
};
use crate::volume::{Metadata, Name, damage, twice};

use super::{Report, Used};

/// Looks at every object, and follows every link from the root directory on.
pub(super) fn check(metadata: &Metadata, report: &mut Report) {
    let mut check = Check {
        blktags: Objects::of(metadata, report, Metadata::blktag, |blktag| (blktag.is_used(), blktag.checksum)),
        direntries: Objects::of(metadata, report, Metadata::direntry, |direntry| {
            (direntry.is_used(), direntry.checksum)
        }),
        inodes: Objects::of(metadata, report, Metadata::inode, |inode| (inode.is_used(), inode.checksum)),
        metadata,
        report,
    };
    check.report.blocks = check.blktags.used();
    check.report.direntries = check.direntries.used();
    check.report.inodes = check.inodes.used();
    check.version();
    check.reserved();
    check.tree(InodeNo::ROOT);
    check.unreached();
}

/// The used objects of one kind, and which of them something led to.
struct Objects<N, T> {
    used: BTreeMap<N, T>,
    total: u64,
    reached: HashSet<N>,
}

impl<N: Number + Hash, T> Objects<N, T> {
    /// All of one kind. Those whose bytes are wrong are reported, and not among them.
    fn of(
        metadata: &Metadata,
        report: &mut Report,
        parse: fn(&Metadata, N) -> Result<T, Damage>,
        state: fn(&T) -> (bool, Checksum),
    ) -> Self {
        let mut objects = Self { used: BTreeMap::new(), total: metadata.count(N::KIND), reached: HashSet::new() };
        let mut unchecked = Vec::new();
        for number in metadata.numbers::<N>() {
            match parse(metadata, number) {
                Err(damage) => report.damage(damage),
                Ok(object) => {
                    let (used, checksum) = state(&object);
                    if checksum == Checksum::Absent {
                        unchecked.push(number);
                    }
                    if used {
                        objects.used.insert(number, object);
                    }
                }
            }
        }
        if let Some(first) = unchecked.first() {
            report.unchecked(format!("{} {first}", N::KIND), first.slot().start(), "mo_checksum", unchecked.len());
        }
        objects
    }

    fn used(&self) -> Used {
        Used { used: self.used.len() as u64, total: self.total }
    }

    /// Those to which nothing led.
    fn unreached(&self) -> impl Iterator<Item = (N, &T)> {
        self.used.iter().filter(|(number, _)| !self.reached.contains(number)).map(|(number, object)| (*number, object))
    }
}

struct Check<'a> {
    metadata: &'a Metadata,
    report: &'a mut Report,
    blktags: Objects<BlktagNo, Blktag>,
    direntries: Objects<DirentryNo, Direntry>,
    inodes: Objects<InodeNo, Inode>,
}

impl Check<'_> {
    /// What an older version has not.
    fn version(&mut self) {
        let version = self.metadata.version();
        if !version.has_holes() {
            for (number, blktag) in &self.blktags.used {
                if matches!(blktag.state, BlktagState::Used { hole: Hole::From(_), .. }) {
                    let problem = format!("a hole, which version {version} has not");
                    self.report.damage(damage(*number, "bt_holeoff", problem));
                }
            }
        }
        if !version.has_long_names() {
            for (number, direntry) in &self.direntries.used {
                if *number != DirentryNo::ROOT && matches!(direntry.state, DirentryState::Extension { .. }) {
                    let problem = format!("a further piece of a name, which version {version} has not");
                    self.report.damage(damage(*number, "de_headdeno", problem));
                }
            }
        }
    }

    /// What lies in a fixed place: the blocks with the metadata, the root directory's entry, the file system's own files.
    fn reserved(&mut self) {
        for header in self.metadata.headers() {
            let Some(number) = BlktagNo::new(header.id, 0) else { continue };
            self.blktags.reached.insert(number);
            let fine = match self.metadata.blktag(number).map(|blktag| blktag.state) {
                Ok(BlktagState::Used { links, owner, index, hole }) => {
                    links.next.is_none()
                        && links.prev.is_none()
                        && owner == InodeNo::ROOT
                        && index == BlockIndex::of(0).0
                        && hole == Hole::Unrecorded
                }
                Ok(BlktagState::Free { .. }) => false,
                // Reported already.
                Err(_) => true,
            };
            if !fine {
                self.report.damage(damage(number, "bt_ino", "the block holds metadata, but is not marked so"));
            }
        }
        self.direntries.reached.insert(DirentryNo::ROOT);
        if let Ok(direntry) = self.metadata.direntry(DirentryNo::ROOT) {
            let fine = match direntry.state {
                DirentryState::Extension { name, head, extension } => {
                    name.bytes().is_empty() && head == DirentryNo::ROOT && extension.is_none()
                }
                _ => false,
            };
            if !fine {
                self.report.damage(damage(
                    DirentryNo::ROOT,
                    "de_ino",
                    "it is the root directory's, but does not say so",
                ));
            }
        }
        if let Ok(root) = self.metadata.inode(InodeNo::ROOT) {
            if !matches!(root.content, Content::Directory(_)) {
                self.report.damage(damage(InodeNo::ROOT, "in_type", "the root is no directory"));
            }
            if root.name != Some(DirentryNo::ROOT) {
                self.report.damage(damage(InodeNo::ROOT, "in_deno", "direntry 0 should be the root directory's"));
            }
        }
        for (inode, number, expected) in
            [(InodeNo::PAXOS, 1, b".pfs-paxos".as_slice()), (InodeNo::JOURNAL, 2, b".pfs-journal")]
        {
            let Some(number) = DirentryNo::from_raw(number) else { continue };
            let Ok(direntry) = self.metadata.direntry(number) else { continue };
            let fine = match direntry.state {
                DirentryState::Head(head) => {
                    head.inode == inode && head.directory == InodeNo::ROOT && head.name.bytes() == expected
                }
                _ => false,
            };
            if !fine {
                let problem = format!("it should be {} in the root directory", String::from_utf8_lossy(expected));
                self.report.damage(damage(number, "de_name", problem));
            }
        }
    }

    /// Everything below a directory.
    fn tree(&mut self, root: InodeNo) {
        self.inodes.reached.insert(root);
        let mut open = vec![root];
        while let Some(number) = open.pop() {
            let Some(inode) = self.inodes.used.get(&number).cloned() else { continue };
            match inode.content {
                Content::Directory(_) => open.extend(self.directory(&inode)),
                Content::File(_) => self.file(&inode),
                Content::Free => {}
            }
        }
    }

    /// One directory. Returns what it leads to and nothing else did.
    fn directory(&mut self, inode: &Inode) -> Vec<InodeNo> {
        let mut heads = Vec::new();
        let outcome = self.metadata.visit_names(inode, |number, head| {
            heads.push((number, head.clone()));
            Ok(())
        });
        self.report_new(outcome);
        let mut names: HashMap<Name, DirentryNo> = HashMap::new();
        let mut found = Vec::new();
        for (number, head) in heads {
            self.direntries.reached.insert(number);
            let reached = &mut self.direntries.reached;
            let mut piece = |piece| {
                reached.insert(piece);
            };
            match self.metadata.name(number, &head, &mut piece) {
                Err(damage) => self.report_new(Err(damage)),
                Ok(name) => {
                    if let Some(other) = names.insert(name.clone(), number) {
                        let problem =
                            format!("{name:?} is also that of direntry {other} in directory {}", inode.number);
                        self.report.damage(damage(number, "de_name", problem));
                    }
                }
            }
            match self.metadata.named(number, head.inode) {
                Err(damage) => self.report_new(Err(damage)),
                Ok(inode) if self.inodes.reached.insert(inode.number) => found.push(inode.number),
                // Its own top, in a tree that is all in itself.
                Ok(_) => {}
            }
        }
        found
    }

    /// One file, with a name or without.
    fn file(&mut self, inode: &Inode) {
        let mut blocks = HashMap::new();
        let reached = &mut self.blktags.reached;
        let mut repeated = Vec::new();
        let outcome = self.metadata.visit_blocks(inode, |block| {
            reached.insert(block.tag);
            if let Some(other) = blocks.insert(block.index, block.tag) {
                repeated.push(twice(block.tag, block.index, other));
            }
            Ok(())
        });
        self.report_new(outcome);
        for damage in repeated {
            self.report.damage(damage);
        }
        let Content::File(file) = &inode.content else { return };
        let volume = u64::from(self.report.chunks).saturating_mul(CHUNK_SIZE.bytes());
        if file.size.bytes() > volume {
            let problem =
                format!("{}, more than the whole volume: only a file that is nearly all hole can be", file.size);
            self.report.note(damage(inode.number, "in_size", problem));
        }
    }

    /// What is used, but no path leads to it. Of a tree that came off, only the directory at its top is reported.
    fn unreached(&mut self) {
        let directories: Vec<Inode> = self.unreached_inodes(|content| matches!(content, Content::Directory(_)));
        let mut inner = HashSet::new();
        for directory in &directories {
            // What is wrong with its list is reported when the tree is walked.
            let _ = self.metadata.visit_names(directory, |_, head| {
                inner.insert(head.inode);
                Ok(())
            });
        }
        let (inner, tops): (Vec<_>, Vec<_>) = directories.into_iter().partition(|inode| inner.contains(&inode.number));
        for directory in tops {
            self.unreached_inode(&directory);
            self.tree(directory.number);
        }
        // What is left is all in one another.
        for directory in inner {
            if let (Some(name), false) = (directory.name, self.inodes.reached.contains(&directory.number)) {
                let problem = format!("{name}, but it is below itself, and no path leads there");
                self.report.damage(damage(directory.number, "in_deno", problem));
                self.tree(directory.number);
            }
        }
        for file in self.unreached_inodes(|content| matches!(content, Content::File(_))) {
            self.unreached_inode(&file);
            self.file(&file);
        }
        self.unreached_names();
        for (number, blktag) in self.blktags.unreached() {
            if let BlktagState::Used { owner, .. } = &blktag.state
                && self.metadata.inode(*owner).is_ok()
            {
                let problem = format!("{owner}, but that file's list does not lead here");
                self.report.damage(damage(number, "bt_ino", problem));
            }
        }
    }

    fn unreached_inodes(&self, of: fn(&Content) -> bool) -> Vec<Inode> {
        self.inodes.unreached().map(|(_, inode)| inode).filter(|inode| of(&inode.content)).cloned().collect()
    }

    fn unreached_inode(&mut self, inode: &Inode) {
        let Some(name) = inode.name else {
            let problem = "0: it was removed, but a crash kept it from being freed; the next read-write mount does it";
            self.report.note(damage(inode.number, "in_nlink", problem));
            return;
        };
        // Where the name is there, but in no directory, it is the name that is reported.
        let named = match self.direntries.used.get(&name).map(|direntry| &direntry.state) {
            Some(DirentryState::Head(head)) => head.inode == inode.number,
            _ => false,
        };
        if !named {
            self.report.damage(damage(inode.number, "in_deno", format!("{name}, which does not name it")));
        }
    }

    fn unreached_names(&mut self) {
        let heads: Vec<_> =
            self.direntries.unreached().map(|(number, direntry)| (number, direntry.state.clone())).collect();
        for (number, state) in heads {
            let DirentryState::Head(head) = state else { continue };
            let reached = &mut self.direntries.reached;
            let mut piece = |piece| {
                reached.insert(piece);
            };
            let name =
                self.metadata.name(number, &head, &mut piece).map_or("it".to_owned(), |name| format!("{name:?}"));
            if self.metadata.inode(head.directory).is_ok() {
                let problem = format!("{}, but that directory's list does not lead to {name}", head.directory);
                self.report.damage(damage(number, "de_dirino", problem));
            }
        }
        for (number, direntry) in self.direntries.unreached() {
            if let DirentryState::Extension { head, .. } = &direntry.state
                && self.metadata.direntry(*head).is_ok()
            {
                let problem = format!("{head}, but that name does not go on here");
                self.report.damage(damage(number, "de_headdeno", problem));
            }
        }
    }

    /// Reports damage unless it is of an object that was reported for itself.
    fn report_new(&mut self, outcome: Result<(), Damage>) {
        if let Err(damage) = outcome
            && !self.report.findings.iter().any(|finding| finding.what == damage)
        {
            self.report.damage(damage);
        }
    }
}
