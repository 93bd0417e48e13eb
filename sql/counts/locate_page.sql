-- locate_page: where in time the tasks of a page are, by the counts; one row.
--
-- :service is '' for all tasks. :after_at is created_at of a cursor. NULL means any, or none.
-- since_edge, until_edge: the counts know the tasks between them. Those from since to since_edge
-- and from until_edge to until are counted from the rows. is_counted: since_edge <= until_edge.
-- page_since, page_until: the page is between them; NULL: no bound. page_since is infinity if fewer
-- than :offset tasks match. skipped: how many match at or after page_until, less those between
-- until_edge and until. is_sparse: fewer than one in a hundred tasks in the place match.
SELECT since_edge, until_edge, is_counted, page_since, page_until, skipped, is_sparse
FROM locate_page(
    :service::text,
    :statuses::task_status[],
    :intents::text[],
    :since::timestamptz,
    :until::timestamptz,
    :after_at::timestamptz,
    :offset::bigint,
    :limit::int
)
