# Where a test makes base's allocations fail, the linker redirects them.
if(TARGET test_base_nomem)
  target_link_options(test_base_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=aligned_alloc,--wrap=strdup)
endif()
if(TARGET test_state_nomem)
  target_link_options(test_state_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc
    -Wl,--wrap=mmap)
endif()
if(TARGET test_state_memory)
  target_link_options(test_state_memory PRIVATE -Wl,--wrap=rooms_take)
endif()

# Parts of godwitctl that need no node; the program's main() stays out.
if(TARGET godwitctl AND CRITERION_FOUND AND NOT GODWIT_SANITIZE STREQUAL "thread")
  file(GLOB ops_files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/ops/*.c)
  list(FILTER ops_files EXCLUDE REGEX "/ctl\\.c$")
  add_library(ops_parts STATIC ${ops_files})
  target_compile_options(ops_parts PRIVATE ${SANITIZED})
  target_link_libraries(ops_parts PUBLIC rpc)
  file(GLOB ops_tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/ops/test_*.c)
  foreach(file IN LISTS ops_tests)
    get_filename_component(stem ${file} NAME_WE)
    string(REPLACE "test_" "" stem ${stem})
    add_executable(test_ops_${stem} ${file})
    target_link_libraries(test_ops_${stem} PRIVATE ops_parts PkgConfig::CRITERION)
    target_compile_options(test_ops_${stem} PRIVATE ${STRICT_TESTS} ${QUICK})
    add_test(NAME unit.ops.${stem} COMMAND test_ops_${stem}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(unit.ops.${stem} PROPERTIES LABELS unit TIMEOUT 1200
      ENVIRONMENT "${SANITIZER_ENVIRONMENT}"
      FAIL_REGULAR_EXPRESSION "Tested: 0 ;LeakSanitizer;runtime error:")
  endforeach()
endif()

# The C protos are the public ones on the wire.
if(TARGET proto)
  add_test(NAME unit.proto.wire
    COMMAND ${PYTHON3} ${CMAKE_CURRENT_LIST_DIR}/proto/check_wire.py ${PROTO_DIR} ${PROTO_C_DIR})
  set_tests_properties(unit.proto.wire PROPERTIES LABELS unit TIMEOUT 240)
endif()

# The server before a client that shares no line with it: Python's grpcio.
if(TARGET rpc AND TARGET proto_python)
  add_executable(fake_server ${CMAKE_CURRENT_LIST_DIR}/rpc/fake_server.c)
  target_link_libraries(fake_server PRIVATE rpc)
  target_compile_options(fake_server PRIVATE ${STRICT_TESTS} ${QUICK})
  add_test(NAME unit.rpc.peer
    COMMAND ${PYTHON3} ${CMAKE_CURRENT_LIST_DIR}/rpc/check_server.py $<TARGET_FILE:fake_server>
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(unit.rpc.peer PROPERTIES LABELS unit TIMEOUT 480
    FAIL_REGULAR_EXPRESSION "LeakSanitizer;runtime error:"
    ENVIRONMENT "PYTHONPATH=${PROTO_PYTHON_DIR};PYTHONDONTWRITEBYTECODE=1;TSAN_OPTIONS=halt_on_error=1:suppressions=${PROJECT_SOURCE_DIR}/tests/race/tsan.supp")
endif()
if(TARGET test_rpc_nomem)
  target_link_options(test_rpc_nomem PRIVATE
    -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc)
endif()
