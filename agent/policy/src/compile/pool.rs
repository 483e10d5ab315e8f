//! Numbers for contents: equal contents share a number, a number keeps its content for as long as a reader
//! may hold it. Knows nothing of what the contents are.

use std::collections::{BTreeMap, BTreeSet};

/// A pool has no room left for this many numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Contents by number. A content that the last compilation did not use goes in two steps: [`Pool::sweep`]
/// forgets the content, so that it comes back under another number; the sweep after that frees the number.
/// Between the two lie a grace period and the deletion of whatever named the number.
#[derive(Clone, Debug)]
pub struct Pool<K> {
    ids: BTreeMap<K, (u32, u32)>,
    used: BTreeSet<u32>,
    dead: Vec<(u32, u32)>,
    /// What the compilation before this one used.
    used_before: BTreeSet<u32>,
    /// What came since the compilation started: nobody reads it yet.
    fresh: BTreeSet<u32>,
    /// Free ranges, start to length, never adjacent.
    free: BTreeMap<u32, u32>,
}

/// What happens to all pools of a compiler together, whatever they number.
pub trait Rounds {
    /// A compilation starts: nothing is used yet.
    fn begin(&mut self);
    /// The compilation comes to nothing: all is as it was before it started.
    fn undo(&mut self);
    /// To be called a grace period after the last compilation's tables are in force.
    fn sweep(&mut self);
    /// True if a content is not used any more.
    fn has_unused(&self) -> bool;
}

impl<K: Ord + Clone> Pool<K> {
    /// A pool of the numbers from `start`, `capacity` of them.
    #[must_use]
    pub fn new(start: u32, capacity: u32) -> Self {
        Self {
            ids: BTreeMap::new(),
            used: BTreeSet::new(),
            dead: Vec::new(),
            used_before: BTreeSet::new(),
            fresh: BTreeSet::new(),
            free: BTreeMap::from([(start, capacity)]),
        }
    }

    /// The number of a content; of one that spans several, the first of `len` in a row.
    pub fn intern(&mut self, content: &K, len: u32) -> Result<u32, NoRoom> {
        let id = if let Some((id, _)) = self.ids.get(content) {
            *id
        } else {
            let id = self.take(len).ok_or(NoRoom)?;
            self.ids.insert(content.clone(), (id, len));
            self.fresh.insert(id);
            id
        };
        self.used.insert(id);
        Ok(id)
    }

    /// The number of a content that has one.
    #[must_use]
    pub fn number(&self, content: &K) -> Option<u32> {
        self.ids.get(content).map(|(id, _)| *id)
    }

    /// The compilation uses this number too.
    pub fn keep(&mut self, id: u32) {
        self.used.insert(id);
    }

    /// Gives a content the number that it had before; false if the number is taken.
    pub fn restore(&mut self, content: K, id: u32) -> bool {
        let Some((start, len)) = self.free.range(..=id).next_back().map(|(s, l)| (*s, *l)) else {
            return false;
        };
        if id >= start + len || self.ids.contains_key(&content) {
            return false;
        }
        self.free.remove(&start);
        if id > start {
            self.free.insert(start, id - start);
        }
        if start + len > id + 1 {
            self.free.insert(id + 1, start + len - id - 1);
        }
        self.ids.insert(content, (id, 1));
        true
    }

    /// Every content, those included that are not used any more but may still be read.
    pub fn contents(&self) -> impl Iterator<Item = (&K, u32)> {
        self.ids.iter().map(|(content, (id, _))| (content, *id))
    }

    fn take(&mut self, len: u32) -> Option<u32> {
        let (start, room) = self.free.iter().find(|(_, room)| **room >= len).map(|(s, r)| (*s, *r))?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        Some(start)
    }

    fn give(&mut self, mut start: u32, mut len: u32) {
        if let Some((before, room)) = self.free.range(..start).next_back().map(|(s, r)| (*s, *r))
            && before + room == start
        {
            self.free.remove(&before);
            start = before;
            len += room;
        }
        if let Some(room) = self.free.remove(&(start + len)) {
            len += room;
        }
        self.free.insert(start, len);
    }
}

impl<K: Ord + Clone> Rounds for Pool<K> {
    fn begin(&mut self) {
        self.used_before = std::mem::take(&mut self.used);
        self.fresh.clear();
    }

    fn undo(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        let mut freed = Vec::new();
        if !fresh.is_empty() {
            self.ids.retain(|_, range| {
                let keep = !fresh.contains(&range.0);
                if !keep {
                    freed.push(*range);
                }
                keep
            });
        }
        for (start, len) in freed {
            self.give(start, len);
        }
        self.used = std::mem::take(&mut self.used_before);
    }

    fn sweep(&mut self) {
        for (start, len) in std::mem::take(&mut self.dead) {
            self.give(start, len);
        }
        let used = &self.used;
        let dead = &mut self.dead;
        self.ids.retain(|_, range| {
            let keep = used.contains(&range.0);
            if !keep {
                dead.push(*range);
            }
            keep
        });
    }

    fn has_unused(&self) -> bool {
        self.ids.len() != self.used.len() || !self.dead.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_share_a_number_and_numbers_return_after_two_sweeps() {
        let mut pool = Pool::new(1, 3);
        let a = pool.intern(&"a", 1).unwrap();
        assert_eq!(pool.intern(&"a", 1), Ok(a));
        let long = pool.intern(&"long", 2).unwrap();
        assert_eq!(pool.intern(&"b", 1), Err(NoRoom));

        pool.begin();
        pool.intern(&"a", 1).unwrap();
        assert!(pool.has_unused());
        pool.sweep();
        assert!(pool.intern(&"b", 1).is_err(), "a reader may still hold the number");
        pool.sweep();
        assert_eq!(pool.intern(&"b", 1), Ok(long));
        assert_eq!(pool.intern(&"c", 1), Ok(long + 1));
    }

    #[test]
    fn a_compilation_that_comes_to_nothing_leaves_what_was_there() {
        let mut pool = Pool::new(1, 3);
        let a = pool.intern(&"a", 1).unwrap();
        pool.begin();
        pool.intern(&"a", 1).unwrap();
        pool.intern(&"long", 2).unwrap();
        assert_eq!(pool.intern(&"b", 1), Err(NoRoom));
        pool.undo();
        assert!(!pool.has_unused());
        assert_eq!((pool.number(&"a"), pool.number(&"long")), (Some(a), None));
        pool.begin();
        pool.keep(a);
        assert!(!pool.has_unused());
        assert_eq!(pool.intern(&"two", 2), Ok(a + 1), "the room is there again");
    }

    #[test]
    fn a_number_from_before_is_restored_once() {
        let mut pool = Pool::new(1, 10);
        assert!(pool.restore("x", 4));
        assert!(!pool.restore("y", 4));
        assert!(!pool.restore("z", 11));
        assert_eq!(pool.intern(&"x", 1), Ok(4));
        assert_eq!(pool.intern(&"four", 4), Ok(5));
        assert_eq!(pool.intern(&"three", 3), Ok(1));
    }
}
