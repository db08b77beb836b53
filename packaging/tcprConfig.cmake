# find_package(tcpr), and then target_link_libraries(PROGRAM PRIVATE tcpr::tcpr).
get_filename_component(_tcpr_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET tcpr::tcpr)
  add_library(tcpr::tcpr SHARED IMPORTED)
  set_target_properties(tcpr::tcpr PROPERTIES
    IMPORTED_LOCATION "${_tcpr_prefix}/lib/libtcpr.so"
    IMPORTED_SONAME "libtcpr.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_tcpr_prefix}/include")
endif()
unset(_tcpr_prefix)
