//! A binary heap of keyed columns that costs linear time to build and a logarithm for each that is taken: few are.

/// (key, alpha, column), smallest key first; equal keys by larger |alpha|, then by column, so that the order is total.
pub(crate) struct MinHeap(Vec<(f64, f64, usize)>);

impl From<Vec<(f64, f64, usize)>> for MinHeap {
    fn from(entries: Vec<(f64, f64, usize)>) -> Self {
        let mut heap = MinHeap(entries);
        for at in (0..heap.0.len() / 2).rev() {
            heap.sink(at);
        }
        heap
    }
}

impl MinHeap {
    pub(crate) fn pop(&mut self) -> Option<(f64, f64, usize)> {
        if self.0.is_empty() {
            return None;
        }
        let first = self.0.swap_remove(0);
        self.sink(0);
        Some(first)
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.0.len() && before(&self.0[child], &self.0[least]) {
                    least = child;
                }
            }
            if least == at {
                return;
            }
            self.0.swap(at, least);
            at = least;
        }
    }
}

fn before(a: &(f64, f64, usize), b: &(f64, f64, usize)) -> bool {
    a.0.total_cmp(&b.0)
        .then_with(|| b.1.abs().total_cmp(&a.1.abs()))
        .then_with(|| a.2.cmp(&b.2))
        .is_lt()
}
