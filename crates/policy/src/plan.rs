//! Who asks for the entries of a subject's policy, and in which way.

use villus_abi::{Direction, PolicyKey};
use villus_labels::NumericIdentity;

use crate::{
    Bound, Clause, Cut, Peers, SelectorId,
    compile::{ClauseRef, Compiler},
};

/// The clauses of the rules that select a subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// In order of their numbers.
    pub(crate) clauses: Vec<ClauseRef>,
    /// Those of them that are requirements.
    requirements: Vec<ClauseRef>,
    /// What ranges are cut into: ingress, egress.
    cuts: [Cut; 2],
}

impl Plan {
    pub(crate) fn new(clauses: Vec<ClauseRef>, compiler: &Compiler<'_>) -> Self {
        let mut requirements = clauses.clone();
        requirements
            .retain(|r| compiler.clause(*r).is_some_and(|(clause, _)| clause.bound == Bound::Requirement));
        let cuts = Direction::ALL.map(|direction| {
            let all = clauses.iter().filter_map(|reference| compiler.clause(*reference));
            let ours = all.filter(|(clause, _)| clause.direction == direction);
            Cut::of(ours.flat_map(|(clause, _)| clause.ports.iter().copied()))
        });
        Self { clauses, requirements, cuts }
    }

    pub(crate) const fn cuts(&self) -> [Cut; 2] {
        self.cuts
    }

    /// Ranges make as few entries as they can, whatever that costs a packet. Says whether that is different.
    pub(crate) fn cut_for_room(&mut self) -> bool {
        std::mem::replace(&mut self.cuts, [Cut::EVERY; 2]) != [Cut::EVERY; 2]
    }

    /// The requirements that bind a clause, each as the selectors that must all be met.
    fn binding<'c>(
        &'c self,
        clause: &'c Clause,
        compiler: &'c Compiler<'_>,
    ) -> impl Iterator<Item = &'c [SelectorId]> {
        let requirements = self.requirements.iter().filter(|_| clause.bound == Bound::Required);
        let all = requirements.filter_map(|reference| compiler.clause(*reference));
        all.filter(|(other, _)| (other.direction, other.deny) == (clause.direction, clause.deny))
            .map(|(_, selectors)| selectors)
    }

    /// Whether a clause may speak about a peer that its selectors select.
    fn admits(&self, clause: &Clause, peer: NumericIdentity, compiler: &Compiler<'_>) -> bool {
        let mut selectors = self.binding(clause, compiler).flatten();
        selectors.all(|id| compiler.selectors.selection(*id).binary_search(&peer).is_ok())
    }

    /// The keys that a clause asks for about one peer that its selectors select; [`NumericIdentity::UNKNOWN`] is
    /// everybody.
    pub(crate) fn keys<'c>(
        &self,
        clause: &'c Clause,
        peer: NumericIdentity,
        compiler: &Compiler<'_>,
    ) -> impl Iterator<Item = PolicyKey> + use<'c> {
        let admitted = clause.bound == Bound::Free || self.admits(clause, peer, compiler);
        let cut = self.cuts[clause.direction as usize];
        let ports = if admitted { clause.ports.as_slice() } else { &[] };
        ports.iter().flat_map(move |ports| ports.keys_in(cut, peer.0, clause.direction))
    }

    /// Whom a clause about everybody speaks about where requirements bind it: none of those whom nobody knows.
    pub(crate) fn instead_of_any<'c>(
        &self,
        clause: &Clause,
        compiler: &Compiler<'c>,
    ) -> Option<&'c [NumericIdentity]> {
        if !matches!(clause.peers, Peers::Any) {
            return None;
        }
        let selectors = compiler.selectors;
        let first = *self.binding(clause, compiler).flatten().next()?;
        Some(selectors.selection(first))
    }

    /// The places of clauses about everybody that requirements bind.
    pub(crate) fn bound_any(&self, compiler: &Compiler<'_>) -> Vec<usize> {
        if self.requirements.is_empty() {
            return Vec::new();
        }
        let bound = |reference: &ClauseRef| {
            compiler
                .clause(*reference)
                .is_some_and(|(clause, _)| self.instead_of_any(clause, compiler).is_some())
        };
        (0..).zip(&self.clauses).filter(|(_, reference)| bound(reference)).map(|(at, _)| at).collect()
    }
}
