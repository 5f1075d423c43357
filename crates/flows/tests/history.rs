//! The history and its observers.

mod common;

use common::{drop_of, flow, syn, verdict};
use villus_abi::{Direction, Event, Reason};
use villus_flows::{EventType, Filter, FlowEvent, History, LossSource, Record};

fn numbered(numbers: std::ops::Range<u64>) -> Vec<FlowEvent> {
    numbers.map(|time| flow(Event { time, ..syn() })).collect()
}

fn times(events: &[FlowEvent]) -> Vec<u64> {
    events.iter().map(|event| event.time).collect()
}

fn drain(observer: &mut villus_flows::Observer) -> Vec<Result<u64, u64>> {
    let record = |record| match record {
        Record::Event(event) => Ok(event.time),
        Record::Lost { count, .. } => Err(count),
    };
    std::iter::from_fn(|| observer.ready()).map(record).collect()
}

#[test]
fn the_last_events_are_kept() {
    let history = History::new(4);
    history.push(&numbered(0..3));
    assert_eq!(times(&history.last(10, &Filter::default())), [0, 1, 2]);
    history.push(&numbered(3..6));
    assert_eq!(times(&history.last(10, &Filter::default())), [2, 3, 4, 5]);
    history.push(&numbered(6..20));
    assert_eq!(times(&history.last(2, &Filter::default())), [18, 19]);
    assert_eq!((history.len(), history.seen()), (4, 20));
}

#[test]
fn a_history_of_none_still_serves_observers() {
    let history = History::new(0);
    let mut observer = history.observe(Filter::default(), 5, 5);
    history.push(&numbered(0..2));
    assert!(history.is_empty());
    assert_eq!(drain(&mut observer), [Ok(0), Ok(1)]);
}

#[test]
fn an_observer_gets_the_past_and_then_the_present_once() {
    let history = History::new(10);
    history.push(&numbered(0..3));
    let mut observer = history.observe(Filter::default(), 2, 16);
    history.push(&numbered(3..5));
    assert_eq!(drain(&mut observer), [Ok(1), Ok(2), Ok(3), Ok(4)]);
    assert_eq!(drain(&mut observer), []);
}

#[test]
fn an_observer_sees_only_what_it_asked_for() {
    let history = History::new(10);
    let filter = Filter { types: vec![EventType::Drop], ..Filter::default() };
    history.push(&[flow(syn()), flow(drop_of(133))]);
    let mut observer = history.observe(filter, 10, 10);
    history.push(&[flow(syn()), flow(drop_of(181))]);
    assert_eq!(drain(&mut observer).len(), 2);
}

#[test]
fn a_slow_observer_is_told_how_many_it_missed_and_where() {
    let history = History::new(10);
    let mut slow = history.observe(Filter::default(), 0, 4);
    let mut quick = history.observe(Filter::default(), 0, 100);
    history.push(&numbered(0..10));
    assert_eq!(drain(&mut slow), [Ok(0), Ok(1), Ok(2), Ok(3), Err(6)]);
    assert_eq!(drain(&mut quick).len(), 10, "others are not disturbed");
    assert_eq!(history.lost(LossSource::ObserverQueue), 6);

    history.push(&numbered(10..16));
    assert!(matches!(slow.ready(), Some(Record::Event(_))));
    assert!(matches!(slow.ready(), Some(Record::Event(_))));
    history.push(&numbered(16..17));
    assert_eq!(drain(&mut slow), [Ok(12), Ok(13), Err(2), Ok(16)], "the report stands where events miss");
}

#[test]
fn every_event_is_delivered_or_reported_lost() {
    let history = History::new(0);
    let mut observer = history.observe(Filter::default(), 0, 3);
    let (mut got, mut lost) = (0, 0);
    for round in 0..100 {
        history.push(&numbered(0..round % 7));
        if round % 3 == 0 {
            for record in drain(&mut observer) {
                record.map_or_else(|count| lost += count, |_| got += 1);
            }
        }
    }
    for record in drain(&mut observer) {
        record.map_or_else(|count| lost += count, |_| got += 1);
    }
    assert_eq!(got + lost, history.seen());
    assert_eq!(lost, history.lost(LossSource::ObserverQueue));
}

#[test]
fn losses_of_the_kernel_reach_every_observer() {
    let history = History::new(10);
    let filter = Filter { types: vec![EventType::Drop], ..Filter::default() };
    let mut observer = history.observe(filter, 0, 10);
    history.lost_in_kernel(0);
    history.lost_in_kernel(5);
    assert_eq!(drain(&mut observer), [Err(5)]);
    assert_eq!(history.lost(LossSource::KernelRing), 5);
}

#[test]
fn observers_that_left_are_forgotten() {
    let history = History::new(10);
    let observer = history.observe(Filter::default(), 0, 10);
    assert_eq!(history.observers(), 1);
    drop(observer);
    assert_eq!(history.observers(), 0);
}

#[tokio::test]
async fn waiting_observers_wake_and_end_with_the_history() {
    let history = std::sync::Arc::new(History::new(10));
    let mut observer = history.observe(Filter::default(), 0, 10);
    let writer = std::sync::Arc::clone(&history);
    let task = tokio::spawn(async move {
        tokio::task::yield_now().await;
        writer.push(&numbered(7..8));
        tokio::task::yield_now().await;
        writer.close();
    });
    assert!(matches!(observer.next().await, Some(Record::Event(FlowEvent { time: 7, .. }))));
    assert_eq!(observer.next().await, None);
    task.await.unwrap();
    assert_eq!(history.observe(Filter::default(), 0, 10).next().await, None, "closed stays closed");
}

#[test]
fn events_are_counted_by_type_reason_and_direction() {
    let history = History::new(2);
    let egress = Event { direction: 1, ..drop_of(133) };
    history.push(&[flow(drop_of(133)), flow(egress), flow(egress), flow(syn()), flow(verdict(-181, 0))]);
    let rows: Vec<_> = history
        .counters()
        .snapshot()
        .into_iter()
        .map(|row| (row.event, row.reason, row.direction, row.count))
        .collect();
    assert_eq!(
        rows,
        [
            (EventType::Drop, Reason::POLICY, Direction::Ingress, 1),
            (EventType::Drop, Reason::POLICY, Direction::Egress, 2),
            (EventType::Trace, Reason::FORWARDED, Direction::Ingress, 1),
            (EventType::PolicyVerdict, Reason::POLICY_DENY, Direction::Ingress, 1),
        ]
    );
}
