-- The record of who exported what would be lost.
DO $$ BEGIN
    IF EXISTS (SELECT FROM exports) THEN
        RAISE EXCEPTION 'exports are recorded: they would be lost';
    END IF;
END $$;

DROP FUNCTION services_cell;
DROP FUNCTION neutral_cell;
DROP FUNCTION is_formula;
DROP FUNCTION export_document;
DROP TABLE exports;
DROP FUNCTION refuse_export_change;
