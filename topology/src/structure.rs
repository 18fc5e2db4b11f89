//! The shape of a graph: components, bridges, articulation points, distances, connectivity.
//!
//! All searches keep their own stacks, so that a line of 100,000 nodes overflows nothing. Two
//! answers take long on large graphs; their work is bounded, and what is known when the bound
//! is reached is given as a [`Bounds`].

use std::collections::{BTreeMap, VecDeque};

use crate::graph::Topology;

/// A number known exactly, or only between two others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// It is at least this.
    pub lower: usize,
    /// It is at most this.
    pub upper: usize,
}

impl Bounds {
    fn exactly(value: usize) -> Self {
        Self { lower: value, upper: value }
    }

    /// The number, if it is known.
    pub fn exact(self) -> Option<usize> {
        (self.lower == self.upper).then_some(self.lower)
    }
}

/// The connected components: nodes in ascending order, components by their first node.
pub fn components(topology: &Topology) -> Vec<Vec<usize>> {
    let lists = topology.adjacency();
    let mut component_of = vec![None; lists.len()];
    let mut count = 0;
    for start in 0..lists.len() {
        if component_of[start].is_some() {
            continue;
        }
        component_of[start] = Some(count);
        let mut stack = vec![start];
        while let Some(node) = stack.pop() {
            for &(neighbor, _) in &lists[node] {
                if component_of[neighbor].is_none() {
                    component_of[neighbor] = Some(count);
                    stack.push(neighbor);
                }
            }
        }
        count += 1;
    }
    let mut components = vec![Vec::new(); count];
    for (node, component) in component_of.into_iter().enumerate() {
        components[component.expect("every node was visited")].push(node);
    }
    components
}

/// The edges whose loss would disconnect their ends, as places in [`Topology::edges`], ascending.
pub fn bridges(topology: &Topology) -> Vec<usize> {
    low_points(topology).bridges
}

/// The nodes whose loss would disconnect some of their neighbors, ascending.
pub fn articulation_points(topology: &Topology) -> Vec<usize> {
    low_points(topology).articulation_points
}

struct LowPoints {
    bridges: Vec<usize>,
    articulation_points: Vec<usize>,
}

/// Hopcroft and Tarjan 1973: in a depth-first search, what hangs below an edge hangs on it
/// alone if no edge from below reaches above it.
fn low_points(topology: &Topology) -> LowPoints {
    struct Frame {
        node: usize,
        /// The edge by which the search came.
        by: Option<usize>,
        next: usize,
    }

    let lists = topology.adjacency();
    let n = lists.len();
    // Time of the visit, 0 for none; and the earliest time reached from below.
    let (mut entered, mut low) = (vec![0; n], vec![0; n]);
    let mut is_articulation = vec![false; n];
    let mut bridges = Vec::new();
    let mut time = 0;
    for root in 0..n {
        if entered[root] != 0 {
            continue;
        }
        let mut root_children = 0;
        time += 1;
        (entered[root], low[root]) = (time, time);
        let mut stack = vec![Frame { node: root, by: None, next: 0 }];
        while let Some(frame) = stack.last_mut() {
            let node = frame.node;
            if let Some(&(neighbor, edge)) = lists[node].get(frame.next) {
                frame.next += 1;
                if frame.by == Some(edge) {
                    continue;
                }
                if entered[neighbor] != 0 {
                    low[node] = low[node].min(entered[neighbor]);
                    continue;
                }
                time += 1;
                (entered[neighbor], low[neighbor]) = (time, time);
                stack.push(Frame { node: neighbor, by: Some(edge), next: 0 });
                continue;
            }
            let by = frame.by;
            stack.pop();
            let (Some(parent), Some(edge)) = (stack.last(), by) else { continue };
            let parent = parent.node;
            low[parent] = low[parent].min(low[node]);
            if low[node] > entered[parent] {
                bridges.push(edge);
            }
            if parent == root {
                root_children += 1;
            } else if low[node] >= entered[parent] {
                is_articulation[parent] = true;
            }
        }
        is_articulation[root] = root_children > 1;
    }
    bridges.sort_unstable();
    let articulation_points = (0..n).filter(|&i| is_articulation[i]).collect();
    LowPoints { bridges, articulation_points }
}

/// How many nodes have each degree.
pub fn degree_counts(topology: &Topology) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for list in topology.adjacency() {
        *counts.entry(list.len()).or_insert(0) += 1;
    }
    counts
}

/// The steps from a node to each other one, `None` where there is no way.
pub fn distances(topology: &Topology, from: usize) -> Vec<Option<usize>> {
    search(&topology.adjacency(), from)
}

fn search(lists: &[Vec<(usize, usize)>], from: usize) -> Vec<Option<usize>> {
    let mut distances = vec![None; lists.len()];
    distances[from] = Some(0);
    let mut queue = VecDeque::from([(from, 0)]);
    while let Some((node, distance)) = queue.pop_front() {
        for &(neighbor, _) in &lists[node] {
            if distances[neighbor].is_none() {
                distances[neighbor] = Some(distance + 1);
                queue.push_back((neighbor, distance + 1));
            }
        }
    }
    distances
}

/// The largest distance between two nodes; `None` if the graph is not connected.
///
/// Searches from the fringe of a central node inward (Crescenzi et al. 2013, "iFUB"), which
/// takes a few searches on most graphs and one per node on the worst; after
/// [`DIAMETER_WORK_MAX`] visited edges only bounds are given.
pub fn diameter(topology: &Topology) -> Option<Bounds> {
    let lists = topology.adjacency();
    let farthest = |distances: &[Option<usize>]| {
        distances.iter().enumerate().map(|(i, d)| (*d, i)).max().unwrap_or_default()
    };
    let first = search(&lists, 0);
    if first.contains(&None) {
        return None;
    }
    // From the far end of a far end: a long way whose middle is central.
    let (_, start) = farthest(&first);
    let from_start = search(&lists, start);
    let (length, end) = farthest(&from_start);
    let mut lower = length.unwrap_or(0);
    let from_end = search(&lists, end);
    let middle = (0..lists.len())
        .filter(|&i| from_start[i].zip(from_end[i]).is_some_and(|(a, b)| a + b == lower))
        .min_by_key(|&i| from_start[i].map_or(0, |d| d.abs_diff(lower / 2)))
        .unwrap_or(0);

    let from_middle = search(&lists, middle);
    let mut fringe: Vec<_> =
        from_middle.iter().enumerate().map(|(i, d)| (d.unwrap_or(0), i)).collect();
    fringe.sort_unstable_by(|one, other| other.cmp(one));
    let mut work = 0;
    for nodes in fringe.chunks(64) {
        // Two nodes no farther from the middle than this level are at most twice as far apart.
        let (level, _) = nodes[0];
        if lower >= 2 * level {
            return Some(Bounds::exactly(lower));
        }
        if work > DIAMETER_WORK_MAX {
            return Some(Bounds { lower, upper: 2 * level });
        }
        let sources = nodes.iter().map(|&(_, node)| node);
        lower = lower.max(largest_distance(&lists, sources, &mut work));
    }
    Some(Bounds::exactly(lower))
}

/// The largest distance from any of up to 64 nodes of a connected graph, searched together: bit
/// `s` of a node's word says that source `s` has reached it.
fn largest_distance(
    lists: &[Vec<(usize, usize)>],
    sources: impl Iterator<Item = usize>,
    work: &mut usize,
) -> usize {
    let mut reached = vec![0u64; lists.len()];
    let mut arriving = vec![0u64; lists.len()];
    let mut front = Vec::new();
    for (bit, source) in sources.enumerate() {
        reached[source] |= 1 << bit;
        front.push((source, 1 << bit));
    }
    let mut steps = 0;
    loop {
        let mut touched = Vec::new();
        for &(node, bits) in &front {
            *work += lists[node].len();
            for &(neighbor, _) in &lists[node] {
                let new = bits & !reached[neighbor];
                if new != 0 && arriving[neighbor] == 0 {
                    touched.push(neighbor);
                }
                arriving[neighbor] |= new;
            }
        }
        if touched.is_empty() {
            return steps;
        }
        steps += 1;
        front.clear();
        for node in touched {
            let bits = std::mem::take(&mut arriving[node]);
            reached[node] |= bits;
            front.push((node, bits));
        }
    }
}

/// Edges visited before [`diameter`] gives bounds: a few seconds.
pub const DIAMETER_WORK_MAX: usize = 1_000_000_000;

/// The fewest nodes whose loss disconnects the rest, or leaves a single node; 0 if the graph is
/// not connected.
///
/// Even's algorithm in the form of Esfahanian and Hakimi (1984): disjoint paths from a node of
/// least degree to every node it is not joined to, and between its neighbors. After
/// [`CONNECTIVITY_WORK_MAX`] visited edges only bounds are given.
pub fn vertex_connectivity(topology: &Topology) -> Bounds {
    let lists = topology.adjacency();
    let n = lists.len();
    let Some((least, center)) = lists.iter().enumerate().map(|(i, list)| (list.len(), i)).min()
    else {
        return Bounds::exactly(0);
    };
    if least == n - 1 {
        return Bounds::exactly(n - 1);
    }
    if !topology.is_connected() {
        return Bounds::exactly(0);
    }
    if !low_points(topology).articulation_points.is_empty() {
        return Bounds::exactly(1);
    }
    let joined = |a: usize, b: usize| lists[a].binary_search_by_key(&b, |&(i, _)| i).is_ok();
    let mut flow = DisjointPaths::new(&lists);
    let mut upper = least;
    let others = (0..n).filter(|&i| i != center && !joined(center, i)).map(|i| (center, i));
    let around: Vec<_> = lists[center].iter().map(|&(i, _)| i).collect();
    let pairs = around.iter().enumerate().flat_map(|(at, &a)| {
        around[at + 1..].iter().filter(move |&&b| !joined(a, b)).map(move |&b| (a, b))
    });
    for (from, to) in others.chain(pairs) {
        // Without articulation points no two nodes hang on one.
        if upper == 2 {
            break;
        }
        if flow.work > CONNECTIVITY_WORK_MAX {
            return Bounds { lower: 2, upper };
        }
        upper = flow.count(from, to, upper);
    }
    Bounds::exactly(upper)
}

/// Edges visited before [`vertex_connectivity`] gives bounds: some seconds.
pub const CONNECTIVITY_WORK_MAX: usize = 500_000_000;

/// Counts paths between two nodes that share no other node: unit flow in the graph where each
/// node is an entry, an exit and an arc between.
struct DisjointPaths<'a> {
    lists: &'a [Vec<(usize, usize)>],
    /// Where the path through a node comes from and goes to.
    before: Vec<Option<usize>>,
    after: Vec<Option<usize>>,
    /// The search that visited the entry and the exit of each node, and from where it came.
    seen_entry: Vec<(usize, usize)>,
    seen_exit: Vec<(usize, usize)>,
    searches: usize,
    work: usize,
}

impl<'a> DisjointPaths<'a> {
    fn new(lists: &'a [Vec<(usize, usize)>]) -> Self {
        let n = lists.len();
        Self {
            lists,
            before: vec![None; n],
            after: vec![None; n],
            seen_entry: vec![(0, 0); n],
            seen_exit: vec![(0, 0); n],
            searches: 0,
            work: 0,
        }
    }

    /// How many such paths there are, counted up to `enough`.
    fn count(&mut self, from: usize, to: usize, enough: usize) -> usize {
        self.before.fill(None);
        self.after.fill(None);
        self.work += self.lists.len();
        (0..enough).find(|_| !self.augment(from, to)).unwrap_or(enough)
    }

    /// Finds one more path through entries and exits, and shifts the paths it crosses.
    fn augment(&mut self, from: usize, to: usize) -> bool {
        self.searches += 1;
        let search = self.searches;
        self.seen_exit[from] = (search, from);
        // A node and whether the search stands at its exit.
        let mut queue = VecDeque::from([(from, true)]);
        while let Some((node, at_exit)) = queue.pop_front() {
            if at_exit {
                self.work += self.lists[node].len();
                for &(neighbor, _) in &self.lists[node] {
                    if neighbor == to && self.after[node] != Some(to) {
                        self.shift(from, node, to);
                        return true;
                    }
                    let is_open = neighbor != from && neighbor != to;
                    let is_used = self.after[node] == Some(neighbor);
                    if is_open && !is_used && self.seen_entry[neighbor].0 != search {
                        self.seen_entry[neighbor] = (search, node);
                        queue.push_back((neighbor, false));
                    }
                }
                // Back along the inner arc of a used node.
                if self.before[node].is_some() && node != from && self.seen_entry[node].0 != search
                {
                    self.seen_entry[node] = (search, node);
                    queue.push_back((node, false));
                }
                continue;
            }
            match self.before[node] {
                None => {
                    if self.seen_exit[node].0 != search {
                        self.seen_exit[node] = (search, node);
                        queue.push_back((node, true));
                    }
                }
                // Back along the arc by which a path comes.
                Some(previous) if previous != from && self.seen_exit[previous].0 != search => {
                    self.seen_exit[previous] = (search, node);
                    queue.push_back((previous, true));
                }
                Some(_) => {}
            }
        }
        false
    }

    /// Follows the search back from `last` and turns its steps into paths.
    fn shift(&mut self, from: usize, last: usize, to: usize) {
        let mut steps = Vec::new();
        let (mut node, mut at_exit) = (last, true);
        while node != from || !at_exit {
            let came = if at_exit { self.seen_exit[node].1 } else { self.seen_entry[node].1 };
            steps.push((came, node, at_exit));
            // Exit reached from its own entry or from the entry of the node after it; entry from
            // its own exit or from the exit of a neighbor.
            (node, at_exit) = (came, !at_exit);
        }
        // Arcs given up first, so that those taken up are not cleared by them.
        for &(came, node, at_exit) in &steps {
            if at_exit && came != node {
                (self.after[node], self.before[came]) = (None, None);
            }
        }
        for &(came, node, at_exit) in &steps {
            if !at_exit && came != node {
                self.before[node] = Some(came);
                if came != from {
                    self.after[came] = Some(node);
                }
            }
        }
        if last != from {
            self.after[last] = Some(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Family, Parameters, generate};

    fn graph(family: Family, nodes: usize) -> Topology {
        generate(family, nodes, Parameters::default(), 2).unwrap()
    }

    #[test]
    fn components_are_listed_by_first_node() {
        let topology = Topology::from_edges(5, [(0, 3), (1, 4)]).unwrap();
        assert_eq!(components(&topology), [vec![0, 3], vec![1, 4], vec![2]]);
        assert_eq!(diameter(&topology), None);
        assert_eq!(vertex_connectivity(&topology), Bounds::exactly(0));
    }

    #[test]
    fn barbell_hangs_on_its_bridge() {
        let barbell = graph(Family::Barbell, 8);
        let bridge = bridges(&barbell);
        assert_eq!(bridge.len(), 1);
        assert_eq!((barbell.edges()[bridge[0]].a, barbell.edges()[bridge[0]].b), (3, 4));
        assert_eq!(articulation_points(&barbell), [3, 4]);
        assert_eq!(vertex_connectivity(&barbell), Bounds::exactly(1));
    }

    #[test]
    fn long_line_overflows_nothing() {
        let line = graph(Family::Line, 100_000);
        assert_eq!(bridges(&line).len(), 99_999);
        assert_eq!(articulation_points(&line).len(), 99_998);
        assert_eq!(diameter(&line), Some(Bounds::exactly(99_999)));
    }

    #[test]
    fn known_graphs_have_their_diameter_and_connectivity() {
        use Family::*;
        for (family, nodes, across, connectivity) in [
            (Complete, 9, 1, 8),
            (Ring, 9, 4, 2),
            (Star, 9, 2, 1),
            (Grid, 16, 6, 2),
            (Torus, 25, 4, 4),
            (Hypercube, 32, 5, 5),
            (Line, 2, 1, 1),
            (Line, 1, 0, 0),
        ] {
            let topology = graph(family, nodes);
            assert_eq!(diameter(&topology), Some(Bounds::exactly(across)), "{family}");
            assert_eq!(vertex_connectivity(&topology), Bounds::exactly(connectivity), "{family}");
        }
    }

    #[test]
    fn shape_agrees_with_removing_and_looking() {
        for seed in 0..30 {
            let parameters = Parameters { probability: Some(0.45), ..Parameters::default() };
            let topology = generate(Family::ErdosRenyi, 8, parameters, seed).unwrap();
            let is_cut = |removed: usize| {
                let left: Vec<_> = (0..8).filter(|i| removed >> i & 1 == 0).collect();
                let place = |node| left.iter().position(|&i| i == node);
                let edges = topology.edges().iter().filter_map(|e| place(e.a).zip(place(e.b)));
                !Topology::from_edges(left.len(), edges).unwrap().is_connected()
            };
            let fewest = (0..255usize)
                .filter(|&removed| removed.count_ones() == 7 || is_cut(removed))
                .map(usize::count_ones)
                .min();
            assert_eq!(
                vertex_connectivity(&topology).exact(),
                fewest.map(|fewest| fewest as usize),
                "seed {seed}"
            );
            let cuts: Vec<_> = (0..8).filter(|i| is_cut(1 << i)).collect();
            assert_eq!(articulation_points(&topology), cuts, "seed {seed}");
            let farthest = (0..8).flat_map(|i| distances(&topology, i)).flatten().max();
            assert_eq!(diameter(&topology).and_then(Bounds::exact), farthest, "seed {seed}");
        }
    }
}
