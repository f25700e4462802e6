//! Which manifests tell what a build needs, and how they are read: the commit's own and those of its
//! parents, else the best of a trail: the branch's or the default branch's, else the scope's; and beside it
//! those that it may hide. A manifest that is missing, damaged or of another version is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{join, join_all, join3};

use crate::backend::{Name, Space};
use crate::cache::Cache;
use crate::cache::forecast::{Aim, Forecast};
use crate::cache::frames::Standing;
use crate::cache::fresh::PARTS_MAX;
use crate::cache::realm::{Realm, Upstream};
use crate::entry::action::Packed;
use crate::entry::{Digest, RealmId, Why};
use crate::manifest::trail::{self, Beside, Trail, TrailRow};
use crate::manifest::{self, FormatError, Manifest, Place};
use crate::units::Timestamp;

/// What default branches are called.
const USUAL: [&str; 2] = ["main", "master"];
/// Sessions that are tried where the best one's manifest is gone.
const OTHERS_MAX: usize = 2;
/// And that are read beside it, as they may be what it hides.
const BESIDE_MAX: usize = 6;
/// Git is asked for the parents beside the first questions.
pub(super) const PARENTS_WAIT: Duration = Duration::from_millis(250);

/// Where a manifest stands upstream.
pub(in crate::worker) fn name_of_manifest(realm: &Realm, scope: &str, commit: &str) -> Name {
    value(realm, manifest::manifest_key(scope, commit))
}

pub(in crate::worker) fn name_of_trail(realm: &Realm, scope: &str, branch: &str) -> Name {
    value(realm, manifest::trail_key(scope, branch))
}

pub(in crate::worker) fn name_of_scope_trail(realm: &Realm, scope: &str) -> Name {
    value(realm, manifest::scope_trail_key(scope))
}

fn value(realm: &Realm, key: Digest) -> Name {
    Name { namespace: realm.namespace.clone(), space: Space::Ac, id: key.to_string() }
}

/// The manifests to follow, by realm, nearest first.
pub(super) async fn read(cache: &Cache, forecast: &Forecast) -> Vec<(Arc<Realm>, Manifest)> {
    let realm = &forecast.aim.realm;
    let mut realms = vec![realm.clone()];
    realms.extend(realm.trusted.clone());
    let all = join_all(realms.into_iter().map(|realm| of_realm(cache, forecast, realm))).await;
    all.into_iter().flatten().collect()
}

async fn of_realm(
    cache: &Cache,
    forecast: &Forecast,
    realm: Arc<Realm>,
) -> Option<(Arc<Realm>, Manifest)> {
    let upstream = realm.upstream.clone()?;
    let asked = Asked { cache, upstream: &upstream, realm: &realm, aim: &forecast.aim, forecast };
    let trails = join(asked.trails(), asked.scope_trail());
    let known = join(asked.manifest(&forecast.aim.commit, PARTS_MAX), trails);
    let parents = asked.parents(forecast);
    tokio::pin!(known, parents);
    let (head, (trails, scope), parents) = tokio::select! {
        biased;
        (head, trails) = &mut known => {
            // A commit that was built whole needs no parents, and git may be slow to name them.
            let is_whole = head.as_ref().is_some_and(|head: &Manifest| head.complete);
            let parents = if is_whole { Vec::new() } else { parents.await };
            (head, trails, parents)
        }
        parents = &mut parents => {
            let (head, trails) = known.await;
            (head, trails, parents)
        }
    };
    let now = cache.clock().now();
    let best = best_of(&trails, now);
    let mut found: Vec<Manifest> = head.into_iter().chain(parents).collect();
    // Those of a part of what their trail has seen would hide a fuller one.
    let is_partial = |best: &&TrailRow| found.iter().all(|m| TrailRow::of(m).is_part_of(best));
    if let Some(best) = best.filter(is_partial) {
        found.extend(asked.follow(best, &trails, &found).await);
    }
    if found.is_empty()
        && let Some(scope) = scope
        && let Some(best) = scope.best(now)
    {
        found = asked.follow(best, std::slice::from_ref(&scope), &[]).await;
        forecast.is_by_scope_alone.store(!found.is_empty(), Ordering::Relaxed);
    }
    let fullest = found.iter().map(|manifest| manifest.rows.len()).max().unwrap_or(0);
    forecast.fullest.fetch_max(fullest, Ordering::Relaxed);
    let merged = found.into_iter().reduce(Manifest::merge)?;
    Some((realm.clone(), merged))
}

/// Where to start, from the trails of the own branch and of others: the own one's, unless another
/// knows of a much fuller build.
fn best_of(trails: &[Trail], now: Timestamp) -> Option<&TrailRow> {
    let best = trails.iter().filter_map(|trail| trail.best(now));
    best.reduce(
        |own, other| {
            if own.is_part_of(other) || other.complete && !own.complete { other } else { own }
        },
    )
}

struct Asked<'a> {
    cache: &'a Cache,
    upstream: &'a Upstream,
    realm: &'a Realm,
    aim: &'a Aim,
    forecast: &'a Forecast,
}

impl Asked<'_> {
    /// In so many parts at once.
    async fn manifest(&self, commit: &str, parts: usize) -> Option<Manifest> {
        let name = name_of_manifest(self.realm, &self.aim.scope, commit);
        let manifest = self.read_manifest(&name, parts as u64).await?;
        // An upstream that mixes its answers up must not have them written under other names.
        let is_it = manifest.is_of(&self.aim.scope, commit);
        is_it.then_some(manifest)
    }

    /// The manifest of the best session, between those of others that it may hide.
    async fn follow(&self, best: &TrailRow, trails: &[Trail], known: &[Manifest]) -> Vec<Manifest> {
        let mut seen: Vec<&str> = known.iter().map(|manifest| &*manifest.commit).collect();
        let most = seen.len() + BESIDE_MAX;
        seen.push(&best.commit);
        let Beside { mut newer, mut older } = self.beside(best, trails);
        for rows in [&mut newer, &mut older] {
            rows.retain(|row| {
                let is_new = !seen.contains(&&*row.commit) && seen.len() <= most;
                if is_new {
                    seen.push(&row.commit);
                }
                is_new
            });
        }
        // They take as many places as the best one, all together: what is small needs no more.
        let parts = (PARTS_MAX / (newer.len() + older.len()).max(1)).clamp(1, 3);
        let read = |rows: Vec<&TrailRow>| {
            let commits: Vec<String> = rows.iter().map(|row| row.commit.clone()).collect();
            async move { join_all(commits.iter().map(|commit| self.manifest(commit, parts))).await }
        };
        let best = self.best_manifest(best, trails, &seen);
        let (newer, best, older) = join3(read(newer), best, read(older)).await;
        newer.into_iter().chain([best]).chain(older).flatten().collect()
    }

    /// What the best may hide in its own trail and in nearer ones.
    fn beside<'a>(&self, best: &TrailRow, trails: &'a [Trail]) -> Beside<'a> {
        let now = self.cache.clock().now();
        let own = trails.iter().position(|trail| trail.rows.contains(best)).unwrap_or(0);
        let mut all = Beside::default();
        for trail in trails.iter().take(own + 1) {
            let beside = trail.beside(best, now);
            all.newer.extend(beside.newer);
            all.older.extend(beside.older);
        }
        all
    }

    /// That of the best session; where upstream has let it go, of another one: the newest complete one
    /// first.
    async fn best_manifest(
        &self,
        best: &TrailRow,
        trails: &[Trail],
        seen: &[&str],
    ) -> Option<Manifest> {
        let mut others: Vec<&str> = Vec::new();
        let now = self.cache.clock().now();
        let mut rows: Vec<_> = trails.iter().flat_map(|trail| trail.current(now)).collect();
        rows.sort_by_key(|row| !row.complete);
        for row in rows {
            if !seen.contains(&&*row.commit) && !others.contains(&&*row.commit) {
                others.push(&row.commit);
            }
        }
        for commit in std::iter::once(&*best.commit).chain(others.into_iter().take(OTHERS_MAX)) {
            if let Some(manifest) = self.manifest(commit, PARTS_MAX).await {
                return Some(manifest);
            }
        }
        None
    }

    async fn trails(&self) -> Vec<Trail> {
        let default_branch = &*self.aim.default_branch;
        // Clones of depth 1 seldom know which branch is the default.
        let usual: &[&str] = if default_branch.is_empty() { &USUAL } else { &[default_branch] };
        let mut branches = vec![&*self.aim.branch];
        branches.extend(usual.iter().filter(|branch| ***branch != *self.aim.branch));
        let trails = branches.into_iter().map(|branch| self.trail(branch));
        join_all(trails).await.into_iter().flatten().collect()
    }

    /// For where nothing else is found, asked for beside it: after it, it would cost a round trip of its
    /// own. Who trusts another namespace goes by that one: in his own are other pull requests.
    async fn scope_trail(&self) -> Option<Trail> {
        if self.realm.trusted.is_some() {
            return None;
        }
        let name = name_of_scope_trail(self.realm, &self.aim.scope);
        let trail = self.read_trail(&name).await?;
        trail.is_of(&self.aim.scope, trail::ALL_BRANCHES).then_some(trail)
    }

    async fn trail(&self, branch: &str) -> Option<Trail> {
        let name = name_of_trail(self.realm, &self.aim.scope, branch);
        let trail = self.read_trail(&name).await?;
        trail.is_of(&self.aim.scope, branch).then_some(trail)
    }

    async fn parents(&self, forecast: &Forecast) -> Vec<Manifest> {
        let parents = forecast.parents(PARENTS_WAIT, false).await;
        // All of them together take no more places than one.
        let parts = (PARTS_MAX / parents.len().max(1)).max(1);
        let manifests = parents.iter().map(|commit| self.manifest(commit, parts));
        join_all(manifests).await.into_iter().flatten().collect()
    }

    async fn read_manifest(&self, name: &Name, parts: u64) -> Option<Manifest> {
        let limit = manifest::SIZE_MAX as u64;
        let value = self.cache.read_in_parts(self.upstream, name, limit, parts).await;
        if let Ok(manifest) = decode(self.cache, self.answered(value)?).await? {
            return Some(manifest);
        }
        // Somebody may have written between two of its parts.
        let value = self.cache.read_value(self.upstream, name, limit).await;
        match decode(self.cache, self.answered(value)?).await? {
            Ok(manifest) => Some(manifest),
            Err(error) => {
                tracing::info!(%name, %error, "upstream: a manifest was not taken");
                None
            }
        }
    }

    async fn read_trail(&self, name: &Name) -> Option<Trail> {
        let value = self.cache.read_value(self.upstream, name, trail::SIZE_MAX as u64).await;
        match Trail::decode(&self.answered(value)?) {
            Ok(trail) => Some(trail),
            Err(error) => {
                tracing::info!(%name, %error, "upstream: a trail was not taken");
                None
            }
        }
    }

    /// What stands there. Where upstream could not say, it may a moment later.
    fn answered(&self, value: Result<Option<Vec<u8>>, Why>) -> Option<Vec<u8>> {
        value.unwrap_or_else(|_| {
            self.forecast.was_refused.store(true, Ordering::Relaxed);
            None
        })
    }
}

async fn decode(cache: &Cache, bytes: Vec<u8>) -> Option<Result<Manifest, FormatError>> {
    cache.tasks().blocking("read a manifest", move || Manifest::decode(&bytes)).await
}

/// What a manifest says of where frames stand.
pub(super) fn remember_frames(cache: &Cache, realm: RealmId, manifest: &Manifest) {
    for row in &manifest.rows {
        let standing = match row.place {
            Place::Empty | Place::Ask => continue,
            Place::Frame { digest, size } => Standing::Alone { digest, size },
            Place::Pack { pack, offset, len } => {
                let Some(pack) = manifest.packs.get(pack as usize) else { continue };
                // Who has sent it, or read its action, knows better than an older manifest.
                if let Some(Standing::Packed(known)) = cache.frames().get(realm, &row.output)
                    && known.digest != Digest::EMPTY
                {
                    continue;
                }
                Standing::Packed(Packed {
                    // A manifest does not say it; who needs it compares the output's.
                    digest: Digest::EMPTY,
                    size: u64::from(len),
                    pack: pack.digest,
                    pack_size: pack.size,
                    at: offset,
                })
            }
        };
        cache.frames().insert(realm, row.output, standing);
    }
}
