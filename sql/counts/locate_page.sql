-- locate_page: where a page lies, for the literals of list_tasks; one row.
--
-- $1 counted  text           the service of the filter; '': none
-- $2 statuses task_status[]  any of them; NULL: any
-- $3 intents  text[]         any of them; NULL: any
-- $4 since    timestamptz    inclusive; NULL: unbounded
-- $5 until    timestamptz    exclusive; NULL: unbounded
-- $6 after_at timestamptz    created_at of the last task seen; NULL: first page
-- $7 skipped  bigint         matching tasks before the page
-- $8 wanted   int            tasks in the page
--
-- since_edge, until_edge, is_counted, page_since, page_until, is_sparse: as list_tasks takes them.
-- They are hints: list_tasks is right with any, and tells when they do not fit.
SELECT since_edge, until_edge, is_counted, page_since, page_until, is_sparse
FROM locate_page(
    $1::text, $2::task_status[], $3::text[], $4::timestamptz, $5::timestamptz, $6::timestamptz,
    $7::bigint, $8::int
)
