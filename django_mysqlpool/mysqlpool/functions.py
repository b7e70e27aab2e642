"""The functions that a server has built in, and what a call of each leaves in its session.

A function is known by the server at hand: a name that this one has not built in, or not yet, may be a stored function
there, which may do anything. ``devtools/functions.py`` asks a server's own lists and its parser what is missing from here.

In the lists, ``name>=10.7`` is built in since that version and ``name<9.6`` before that one; without either, in all that
are supported: MariaDB from 10.6, MySQL from 8.0. (Sources: MariaDB's ``information_schema.SQL_FUNCTIONS``, the keywords and
help tables of both, the "Introduced" columns of their manuals.) A version that is not known for sure is a late one: to
believe that a function is a stored one costs a reset.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Calls of these leave nothing. No stored function of their name can be called without its schema: the built-in one comes
#: first, as it does before a loadable one.
_BOTH = """
    abs acos addtime aes_decrypt aes_encrypt ascii asin atan atan2 avg benchmark bin bit_count bit_length ceil ceiling
    char char_length character_length charset coalesce coercibility collation compress concat concat_ws connection_id
    conv convert convert_tz cos cot crc32 current_date current_role current_time current_timestamp current_user database
    date date_format datediff day dayname dayofmonth dayofweek dayofyear default degrees elt exp export_set extractvalue
    field find_in_set floor format found_rows from_base64 from_days from_unixtime get_format greatest hex hour if ifnull
    inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr interval is_free_lock is_ipv4 is_ipv4_compat is_ipv4_mapped
    is_ipv6 is_used_lock isnull json_array json_array_append json_array_insert json_contains json_contains_path
    json_depth json_extract json_insert json_keys json_length json_merge json_merge_patch json_merge_preserve
    json_object json_pretty json_quote json_remove json_replace json_search json_set json_type json_unquote json_valid
    last_day last_insert_id last_value lcase least left length ln load_file localtime localtimestamp locate log log10
    log2 lower lpad ltrim make_set makedate maketime master_pos_wait mbrcontains mbrdisjoint mbrequals mbrintersects
    mbroverlaps mbrtouches mbrwithin microsecond minute mod month monthname name_const nullif oct octet_length ord
    period_add period_diff pi pow power quarter quote radians rand regexp_instr regexp_replace regexp_substr repeat
    replace reverse right round row_count row_number rpad rtrim schema sec_to_time second sha2 sign sin sleep soundex
    space sqrt st_area st_asbinary st_asgeojson st_astext st_aswkb st_aswkt st_buffer st_centroid st_contains
    st_convexhull st_crosses st_difference st_dimension st_disjoint st_distance st_distance_sphere st_endpoint
    st_envelope st_equals st_exteriorring st_geomcollfromtext st_geomcollfromwkb st_geometrycollectionfromtext
    st_geometrycollectionfromwkb st_geometryfromtext st_geometryfromwkb st_geometryn st_geometrytype st_geomfromgeojson
    st_geomfromtext st_geomfromwkb st_interiorringn st_intersection st_intersects st_isclosed st_isempty st_issimple
    st_length st_linefromtext st_linefromwkb st_linestringfromtext st_linestringfromwkb st_mlinefromtext st_mlinefromwkb
    st_mpointfromtext st_mpointfromwkb st_mpolyfromtext st_mpolyfromwkb st_multilinestringfromtext
    st_multilinestringfromwkb st_multipointfromtext st_multipointfromwkb st_multipolygonfromtext st_multipolygonfromwkb
    st_numgeometries st_numinteriorrings st_numpoints st_overlaps st_pointfromtext st_pointfromwkb st_pointn
    st_polyfromtext st_polyfromwkb st_polygonfromtext st_polygonfromwkb st_srid st_startpoint st_symdifference
    st_touches st_union st_within st_x st_y str_to_date strcmp substring_index subtime tan time time_format time_to_sec
    timediff timestamp timestampadd timestampdiff to_base64 to_days to_seconds truncate ucase uncompress
    uncompressed_length unhex unix_timestamp updatexml upper user utc_date utc_time utc_timestamp uuid uuid_short
    version week weekday weekofyear weight_string year yearweek sql_tsi_day sql_tsi_hour sql_tsi_minute sql_tsi_month
    sql_tsi_second sql_tsi_year
"""
_MARIADB = """
    sysdate add_months area asbinary astext aswkb aswkt binlog_gtid_pos boundary buffer centroid chr column_add
    column_check column_create column_delete column_exists column_get column_json column_list concat_operator_oracle
    contains convexhull crc32c>=10.8 crosses decode decode_histogram decode_oracle des_decrypt<12 des_encrypt<12
    dimension disjoint encode encrypt endpoint envelope equals exteriorring format_pico_time>=11.0.2 geomcollfromtext
    geomcollfromwkb geometrycollectionfromtext geometrycollectionfromwkb geometryfromtext geometryfromwkb geometryn
    geometrytype geomfromtext geomfromwkb glength interiorringn intersects isclosed isempty isring issimple
    json_array_intersect>=11.2 json_compact json_detailed json_equals>=10.7 json_exists json_key_value>=11.2 json_loose
    json_normalize>=10.7 json_object_filter_keys>=11.2 json_object_to_array>=11.2 json_overlaps>=10.9 json_query
    json_schema_valid>=11.1 json_value kdf>=11.3 lengthb linefromtext linefromwkb linestringfromtext linestringfromwkb
    lpad_oracle ltrim_oracle master_gtid_wait mbrequal md5 mlinefromtext mlinefromwkb mpointfromtext mpointfromwkb
    mpolyfromtext mpolyfromwkb multilinestringfromtext multilinestringfromwkb multipointfromtext multipointfromwkb
    multipolygonfromtext multipolygonfromwkb natural_sort_key>=10.7 numgeometries numinteriorrings numpoints nvl nvl2
    old_password overlaps password pointfromtext pointfromwkb pointn pointonsurface polyfromtext polyfromwkb
    polygonfromtext polygonfromwkb random_bytes>=10.10 replace_oracle rownum rpad_oracle rtrim_oracle sformat>=10.7 sha
    sha1 srid st_boundary st_isring st_pointonsurface st_relate startpoint substr_oracle sys_guid to_char touches
    uuid_v4>=11.7 uuid_v7>=11.7 value vec_distance>=11.8 vec_distance_cosine>=11.7 vec_distance_euclidean>=11.7
    vec_fromtext>=11.7 vec_totext>=11.7 within x y
"""
_MYSQL = """
    any_value bin_to_uuid etag>=9.4 format_bytes>=8.0.16 format_pico_time>=8.0.16 from_vector>=9 geomcollection
    geometrycollection grouping gtid_subset gtid_subtract icu_version is_uuid json_overlaps>=8.0.17
    json_schema_valid>=8.0.17 json_schema_validation_report>=8.0.17 json_storage_free json_storage_size cume_dist
    dense_rank first_value lag lead nth_value ntile percent_rank rank json_value>=8.0.21 linestring mbrcoveredby
    mbrcovers md5<9.6 multilinestring multipoint multipolygon point polygon ps_current_thread_id>=8.0.16
    ps_thread_id>=8.0.16 random_bytes regexp_like roles_graphml sha<9.6 sha1<9.6 source_pos_wait>=8.0.26
    st_buffer_strategy st_frechetdistance>=8.0.23 st_geohash st_geomcollfromtxt st_hausdorffdistance>=8.0.23 st_isvalid
    st_latfromgeohash st_latitude>=8.0.12 st_lineinterpolatepoint>=8.0.24 st_lineinterpolatepoints>=8.0.24
    st_longfromgeohash st_longitude>=8.0.12 st_makeenvelope st_numinteriorring st_pointatdistance>=8.0.24
    st_pointfromgeohash st_simplify st_swapxy st_transform>=8.0.13 st_validate sql_tsi_quarter sql_tsi_week
    statement_digest>=8.0.13 statement_digest_text>=8.0.13 string_to_vector>=9 to_vector>=9 uuid_to_bin
    validate_password_strength vector_dim>=9 vector_to_string>=9 wait_for_executed_gtid_set
"""

#: These too, if the parenthesis follows at once: after a space they are names like any other, and the call is a
#: stored function's, unless the SQL mode has IGNORE_SPACE. ("Function Name Parsing and Resolution" in MySQL's manual.)
_BOTH_ADJOINING = """
    adddate bit_and bit_or bit_xor cast count curdate curtime date_add date_sub extract group_concat json_arrayagg
    json_objectagg max mid min now position session_user std stddev stddev_pop stddev_samp subdate substr substring sum
    system_user trim var_pop var_samp variance
"""
_MARIADB_ADJOINING = """
    cume_dist dense_rank first_value lag lead median nth_value ntile percent_rank percentile_cont percentile_disc rank
    st_collect>=12 trim_oracle
"""
_MYSQL_ADJOINING = """
    st_collect>=8.0.24 sysdate
"""

#: These, before a parenthesis, call nothing, and none can be the name of a stored function there.
_BOTH_WORDS = """
    all and any as between binary by case character cross datetime decimal distinct distinctrow div double else end
    except exists float from group having in index inner integer intersect is join key keys like limit match natural
    nchar not numeric offset on or order over partition recursive regexp returning rlike row rows select separator set
    signed some straight_join table then union unique unsigned using value values varbinary varchar when where window
    with xor high_priority sql_big_result sql_buffer_result sql_calc_found_rows sql_no_cache sql_small_result
"""
_MARIADB_WORDS = "sql_cache"
_MYSQL_WORDS = "columns escape json_table lateral>=8.0.14 member>=8.0.17 of"

#: The character sets of introducers: ``_binary %s``, whose argument may come with a parenthesis of its own.
_CHARACTER_SETS = """
    armscii8 ascii big5 binary cp1250 cp1251 cp1256 cp1257 cp850 cp852 cp866 cp932 dec8 eucjpms euckr gb2312 gbk geostd8
    greek hebrew hp8 keybcs2 koi8r koi8u latin1 latin2 latin5 latin7 macce macroman sjis swe7 tis620 ucs2 ujis utf16
    utf16le utf32 utf8 utf8mb3 utf8mb4
"""

#: The functions of either server that are not in the lists above, by the reason.
NOT_HARMLESS = {
    "takes or gives up a lock of the session's": "get_lock release_lock release_all_locks",
    "a sequence has a last value for each session": "lastval nextval setval",
    "tells of the session's last writes": "wsrep_last_written_gtid wsrep_last_seen_gtid wsrep_sync_wait_upto_gtid",
    "changes the server": (
        "asynchronous_connection_failover_reset innodb_redo_log_sharp_checkpoint innodb_set_open_files_limit "
        "remove_dd_property_key"
    ),
    "for the server's own views; nobody else may call it": """
        can_access_column can_access_database can_access_event can_access_resource_group can_access_routine can_access_table
        can_access_trigger can_access_user can_access_view convert_cpu_id_mask convert_interval_to_user_interval
        current_role_in current_user_in get_dd_column_privileges get_dd_create_options get_dd_index_private_data
        get_dd_index_sub_part_length get_dd_property_key_value get_dd_schema_options get_dd_tablespace_private_data
        get_jdv_property_key_value internal_auto_increment internal_avg_row_length internal_check_time internal_checksum
        internal_data_free internal_data_length internal_dd_char_length internal_get_comment_or_error
        internal_get_dd_column_extra internal_get_enabled_role_json internal_get_hostname internal_get_mandatory_roles_json
        internal_get_partition_nodegroup internal_get_username internal_get_view_warning_or_error
        internal_index_column_cardinality internal_index_length internal_is_enabled_role internal_is_mandatory_role
        internal_keys_disabled internal_max_data_length internal_table_rows internal_tablespace_autoextend_size
        internal_tablespace_data_free internal_tablespace_extent_size internal_tablespace_extra
        internal_tablespace_free_extents internal_tablespace_id internal_tablespace_initial_size
        internal_tablespace_logfile_group_name internal_tablespace_logfile_group_number internal_tablespace_maximum_size
        internal_tablespace_row_format internal_tablespace_status internal_tablespace_total_extents internal_tablespace_type
        internal_tablespace_version internal_update_time internal_use_terminology_previous is_visible_dd_object
        version_with_update
    """,
    "with another number of arguments, MariaDB takes the name for a stored function's": (
        "geomcollection geometrycollection linestring multilinestring multipoint multipolygon point polygon"
    ),
}

_VERSION = re.compile(r"(?:5\.5\.5-)?(\d+)\.(\d+)(?:\.(\d+))?")
_ENTRY = re.compile(r"(\w+)(?:>=([\d.]+))?(?:<([\d.]+))?")


def is_mariadb(server_info: str) -> bool:
    """True if a server that greets with ``server_info`` is a MariaDB."""
    return "mariadb" in server_info.lower()


def calls_of(server_info: str) -> frozenset[str]:
    """The words that may stand before a parenthesis on a server with ``server_info``, and leave nothing.

    Each in lower case, with a space at its end for a call that has one before the parenthesis.
    """
    version = _VERSION.match(server_info)
    parts = tuple(int(part or 0) for part in version.groups()) if version else ()
    return _calls_of(is_mariadb(server_info), parts)


@lru_cache(maxsize=16)
def _calls_of(is_mariadb: bool, version: tuple[int, ...]) -> frozenset[str]:
    of_server = (_MARIADB, _MARIADB_WORDS) if is_mariadb else (_MYSQL, _MYSQL_WORDS)
    adjoining_of_server = _MARIADB_ADJOINING if is_mariadb else _MYSQL_ADJOINING
    introducers = {f"_{name}" for name in _CHARACTER_SETS.split()}
    either_way = _names(version, _BOTH, _BOTH_WORDS, *of_server) | introducers
    adjoining = _names(version, _BOTH_ADJOINING, adjoining_of_server)
    return frozenset(either_way | adjoining | {f"{name} " for name in either_way})


def _names(version: tuple[int, ...], *lists: str) -> set[str]:
    """The names of the lists that a server of this version has."""
    entries = [match.groups() for listed in lists for match in _ENTRY.finditer(listed)]
    return {name for name, since, until in entries if _parts(since) <= version and not (until and _parts(until) <= version)}


def _parts(version: str | None) -> tuple[int, ...]:
    return tuple(map(int, version.split("."))) if version else ()


def known_names() -> set[str]:
    """Every name that is here, on whatever server it is a function and whether or not it is harmless."""
    lists = (_BOTH, _MARIADB, _MYSQL, _BOTH_ADJOINING, _MARIADB_ADJOINING, _MYSQL_ADJOINING)
    words = (_BOTH_WORDS, _MARIADB_WORDS, _MYSQL_WORDS)
    return {match[1] for listed in (*lists, *words, *NOT_HARMLESS.values()) for match in _ENTRY.finditer(listed)}
